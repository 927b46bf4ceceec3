"""Adopting a run: its winners and its plan go into the cache because somebody says so, and can be taken back."""

from tunebook.book.promote._propose import Proposal, promote, propose
from tunebook.book.promote._take_back import TakeBack, last_promotion, take_back
from tunebook.store.promotion import Revision

__all__ = ["Proposal", "Revision", "TakeBack", "last_promotion", "promote", "propose", "take_back"]
