"""Tuning on several ranks: they share the work, take turns on a device, race collectives in lock-step, and hold one result."""

from tunebook.tuner._ranks._errors import ContradictionError
from tunebook.tuner._ranks._group import Group, listed
from tunebook.tuner._ranks._hello import device_identity
from tunebook.tuner._ranks._ranks import Ranks
from tunebook.tuner._ranks._turns import Turns, Watched

__all__ = ["ContradictionError", "Group", "Ranks", "Turns", "Watched", "device_identity", "listed"]
