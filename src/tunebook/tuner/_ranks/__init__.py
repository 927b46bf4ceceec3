"""Tuning on several ranks: they share the work, take turns on a device, race collectives in lock-step, and hold one result."""

from tunebook.tuner._ranks._ranks import Ranks

__all__ = ["Ranks"]
