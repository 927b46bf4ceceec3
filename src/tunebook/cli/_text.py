"""Text out of files, made fit to be printed: they come from other people."""

from __future__ import annotations


def clean(text: object) -> str:
    """The text without line breaks and control characters, which a terminal would obey; they are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def markdown(text: object) -> str:
    """A code span that stays inside its table cell: bars are escaped, and a backtick cannot end it."""
    shown = clean(text).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""
