"""What happens to a sentence before CLIP's vocabulary sees it, and after GPT-2's has written it.

OpenAI's CLIP repairs text with ftfy before splitting it. Of that we do what changes sentences people write (HTML
entities, curly quotes, ligatures, full-width letters, control characters, composed accents) and leave out the guessing
of wrongly decoded text, so that no dependency is needed.
"""

from __future__ import annotations

import html
import unicodedata

_WIDE = [*range(0xFF01, 0xFFF0), 0x3000, *range(0xFB00, 0xFB07)]
_QUOTES = {**dict.fromkeys((0x02BC, 0x2018, 0x2019, 0x201A, 0x201B), "'"), **dict.fromkeys(range(0x201C, 0x2020), '"')}
_CONTROL = [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
_REPAIR: dict[int, str | None] = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in _WIDE},
    **_QUOTES,
    **dict.fromkeys(_CONTROL),
}
_SPACED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'"}
_SPACED |= {f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")}


def clean_clip(text: str) -> str:
    """Repair, unescape, collapse white space and lower a sentence as CLIP's text tower was trained on."""
    text = html.unescape(html.unescape(text.translate(_REPAIR)))
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def close_spaces(text: str) -> str:
    """Remove the space before punctuation and English contractions, as the original's narrations have it."""
    for spaced, closed in _SPACED.items():
        text = text.replace(spaced, closed)
    return text
