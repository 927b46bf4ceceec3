"""Text that can be printed: what comes out of files made harmless, and signs that a terminal's encoding lacks spelt out."""

from __future__ import annotations

import codecs
import io
import sys

#: What stands for a sign of ours where the encoding lacks it: in the C locale, say, or in a Windows code page.
FALLBACKS = {
    "≤": "<=", "≥": ">=", "≠": "!=", "×": "x", "µ": "u", "…": "...", "→": "->",
    "·": "-", "−": "-", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_ERRORS = "tunebook.spelt"


def clean(text: object) -> str:
    """The text without line breaks and control characters, which a terminal would obey; they are spelt out."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def markdown(text: object) -> str:
    """A code span that stays inside its table cell: bars are escaped, and a backtick cannot end it."""
    shown = clean(text).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def encodable(text: str, *, error: bool = False) -> str:
    """The text as standard output, or standard error, can show it, so that it is as wide as it is counted."""
    stream = sys.stderr if error else sys.stdout
    below = getattr(stream, "rich_proxied_file", stream)  # while a bar is drawn, the stream is one of rich's
    encoding = below.encoding or "utf-8"
    return text if is_unicode(encoding) else text.encode(encoding, _ERRORS).decode(encoding)


def is_unicode(encoding: str | None) -> bool:
    """Whether an encoding has every sign."""
    return (encoding or "utf-8").lower().replace("_", "-").startswith("utf")


def bear_any_encoding() -> None:
    """Let standard output and standard error spell out the signs that their encoding lacks; Python's way is to raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(FALLBACKS.get(c) or _escaped(c) for c in lacking), error.end


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


codecs.register_error(_ERRORS, _spelt)
