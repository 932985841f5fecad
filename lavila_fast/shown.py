"""Text from elsewhere made safe to show: what a terminal would obey is spelt out.

Names of files, sentences of a model, a server's reasons and a bundle's notes can hold anything. Everything that is
printed goes through `shown`; what is written to files keeps its meaning (see `archive.formats.writer`).
"""

from __future__ import annotations

import re

OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]")
"""C0, DEL and C1 controls, line separators, what turns the direction of writing, and halves of characters."""


def spelt(character: str) -> str:
    r"""A character as Python would write it: ``\x1b``, ``\u202e``; the bytes of a name in another encoding likewise."""
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def shown(text: object) -> str:
    """One line that a terminal shows as it is: a line break and an escape come out as four characters each."""
    return OBEYED.sub(lambda found: spelt(found[0]), str(text))


def shown_lines(text: object) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(shown, str(text).split("\n")))


def many(count: int, what: str) -> str:
    """A count in words, such as ``1 video``, ``1,204 videos``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
