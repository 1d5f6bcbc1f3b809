"""Numbers of things, and lists, in words."""

from collections.abc import Sequence


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2 images``; `many` where more than an s is added: ``1 row was``, ``2 rows were``."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
