"""Text from outside, made safe to show: names and messages may hold control characters for a terminal or page."""

import re

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: colours, titles, cursor, line ends
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing: makes a name look like another
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff]"  # surrogates, which no encoding accepts
)


def plain(text: str, keep: str = "") -> str:
    r"""The text with every control character replaced by its code, such as ``\u202e``.

    The codes are JSON's, so JSON text stays JSON with the same meaning.

    Args:
        text: text of a name, a file, a store, another library.
        keep: characters that stay, such as our own line breaks.
    """
    return _OBEYED.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)
