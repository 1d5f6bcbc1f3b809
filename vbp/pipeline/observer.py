"""Observer: what a run tells whoever watches it."""

from __future__ import annotations


class Observer:
    """Hears how a run goes; this one does nothing with it."""

    def note(self, text: str) -> None:
        """A decision or an event worth a line."""

    def listed(self, images: int) -> None:
        """So many images have been found so far."""

    def started(self, images: int, done: int) -> None:
        """Work begins: `done` of `images` have their rows already."""

    def wrote(self, ok: int, error: int) -> None:
        """A part was committed: so many more images without and with an error."""
