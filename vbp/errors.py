"""The exceptions of vbp, one tree with one root to catch.

::

    VBPError                      everything that vbp raises on purpose
    ├── UsageError                the request cannot be carried out as it stands (exit 2, before any work)
    │   ├── ModelError            the network cannot be explained
    │   └── WeightsError          the checkpoint cannot be read, or does not fit the network
    ├── ImageError                one image cannot be explained: becomes an error row, never ends a run
    │   ├── EmptyFileError            zero bytes
    │   ├── NotAnImageError           the bytes are of no image format that we read
    │   ├── CorruptImageError         an image format, but truncated or broken inside
    │   ├── UnsupportedLayoutError    a sound image, in a layout that we do not read
    │   ├── FileTooLargeError         more bytes than ``--max-bytes``
    │   ├── ImageTooLargeError        more pixels than the limit against decompression bombs
    │   ├── NonFiniteActivationError  the network gave infinity or NaN for this image
    │   ├── TruthError                what is given as the image's true object cannot be
    │   └── WorkerDiedError           more than one worker was killed while it worked on this image alone
    ├── StorageError              a store refuses or does not answer, after retries
    │   └── LeaseLostError        another run has taken over the output
    └── InterruptedRunError       stopped before the end; the same command continues (exit 4)

A missing or forbidden input file raises Python's own ``FileNotFoundError`` and ``PermissionError``.
"""


class VBPError(Exception):
    """Root of everything that vbp raises on purpose."""


class UsageError(VBPError):
    """The request cannot be carried out as it stands; the message says what to change."""


class ModelError(UsageError):
    """The network cannot be explained."""


class WeightsError(UsageError):
    """The checkpoint cannot be read, or does not fit the network."""


class ImageError(VBPError):
    """One image cannot be explained."""


class EmptyFileError(ImageError):
    """The file holds no bytes."""


class NotAnImageError(ImageError):
    """The bytes are of no image format that we read."""


class CorruptImageError(ImageError):
    """An image format, but truncated or broken inside."""


class UnsupportedLayoutError(ImageError):
    """A sound image in a layout that we do not read; the message says which."""


class FileTooLargeError(ImageError):
    """More bytes than the limit against files without end."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit against decompression bombs."""


class NonFiniteActivationError(ImageError):
    """The network gave infinity or NaN for this image."""


class TruthError(ImageError):
    """What is given as the image's true object cannot be."""


class WorkerDiedError(ImageError):
    """More than one worker was killed while it worked on this image alone."""


class StorageError(VBPError):
    """A store refuses or does not answer, after retries."""


class LeaseLostError(StorageError):
    """Another run has taken over the output."""


class InterruptedRunError(VBPError):
    """The run stopped before its end; the same command continues it."""


def why_unread(error: BaseException) -> str:
    """What follows "cannot be read: ", words that a store's own error may begin with as well.

    >>> why_unread(FileNotFoundError("cannot read /x: No such file or directory"))
    '/x: No such file or directory'
    """
    return str(error).removeprefix("cannot read ").rstrip(".")
