"""Observer: callbacks that report the progress of a run."""

from __future__ import annotations


class Observer:
    """Receives the progress of a run; this base class ignores it."""

    def note(self, text: str) -> None:
        """A decision or an event that deserves a line of text."""

    def doing(self, what: str) -> None:
        """Something that may take long has begun: ``loading the network``."""

    def listed(self, images: int) -> None:
        """The listing has found `images` images so far."""

    def started(self, images: int, done: int) -> None:
        """Work begins; `done` of all `images` have a row already."""

    def wrote(self, ok: int, error: int) -> None:
        """A part was committed with `ok` images and `error` failed images."""

    def indexed(self, images: int) -> None:
        """The index of a run has been made for `images` of its images so far."""
