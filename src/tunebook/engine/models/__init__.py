"""Models by name or by path: the built-in ones, checkpoints on this disk, and random ones for tests.

Importing this package imports neither torch nor transformers; loading a model does.
"""

from __future__ import annotations

from tunebook.engine.models._fingerprint import fingerprint
from tunebook.engine.models._load import load
from tunebook.engine.models._loaded import LoadedModel, Progress
from tunebook.engine.models._random import random_model
from tunebook.engine.models._registry import DEFAULT, describe, names, unavailable
from tunebook.engine.models._shapes import TINY_ARCHITECTURES, tiny_config

__all__ = [
    "DEFAULT",
    "TINY_ARCHITECTURES",
    "LoadedModel",
    "Progress",
    "describe",
    "fingerprint",
    "load",
    "names",
    "random_model",
    "tiny_config",
    "unavailable",
]
