"""Bundles: a cache with the runs that support it, made to be shipped, and taken into another cache."""

from tunebook.book.bundle._export import Export, export
from tunebook.book.bundle._import import Import, Refusal, Taken, plan_import, take

__all__ = ["Export", "Import", "Refusal", "Taken", "export", "plan_import", "take"]
