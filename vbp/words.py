"""Numbers of things, in words."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2 images``; `many` where more than an s is added: ``1 row was``, ``2 rows were``."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
