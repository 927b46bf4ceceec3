"""The dtypes that a model can be asked for, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunebook.errors import UsageError

if TYPE_CHECKING:
    import torch

NAMES = ("auto", "bfloat16", "float32", "float16")


def torch_dtype(name: str) -> torch.dtype | None:
    """Give the dtype of a name, or None for "auto"; any other name is a `UsageError`."""
    if name not in NAMES:
        raise UsageError(f"dtype {name!r} is not known; it is one of {', '.join(NAMES)}")
    if name == "auto":
        return None
    import torch

    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
