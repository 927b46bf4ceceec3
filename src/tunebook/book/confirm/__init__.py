"""Settling a difference by racing what two runs chose, now. Apart from the rest of the book, since it loads torch."""

from tunebook.book.confirm._calls import of_model, of_script
from tunebook.book.confirm._confirm import confirm, still_different, suspects
from tunebook.book.confirm._judge import Confirmation

__all__ = ["Confirmation", "confirm", "of_model", "of_script", "still_different", "suspects"]
