"""Text that came from outside, made safe to show: names and messages may hold what a terminal or a page would obey."""

import re

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: colours, titles, cursor, line ends
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing: names that read as others
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff]"  # halves of characters, which no encoding takes
)


def plain(text: str, keep: str = "") -> str:
    r"""The text with every character that would be obeyed instead of shown as its code, such as ``\u202e``.

    The codes are those of JSON: JSON text stays JSON, and says the same.

    Args:
        text: from a name, a file, a store, another library.
        keep: characters that stay as they are, such as the line breaks of our own.
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)
