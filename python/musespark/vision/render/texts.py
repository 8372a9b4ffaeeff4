"""Texts that nobody vouches for, as they may stand in HTML and SVG."""

from __future__ import annotations

import html
import re

MAX_TEXT = 20_000  # characters of one text that are shown

# Control characters but for tab and newline, lone surrogates, what no XML may hold, and what turns
# the direction of the text around it (which could make a page say something else).
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    r"\ufdd0-\ufdef\ufffe\uffff]"
)


def shown(text: str, limit: int = MAX_TEXT) -> str:
    """A text as HTML content or attribute: cut at ``limit``, which is said, with characters that
    have no look of their own spelled out, and escaped."""
    rest = len(text) - limit
    cut = text[:limit] + (f"… ({rest:,} more characters)" if rest > 0 else "")
    return html.escape(_UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", cut), quote=True)
