"""What loading a model gives, and how loading reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the part of it that is finished, 0 to 1, or None where that is unknown."""


def silent(what: str, done: float | None) -> None:
    """Report to nobody: what a caller who gives no callback gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run: on the CPU, in eval mode, with no parameter that asks for a gradient."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model with random weights and for a checkpoint that has none."""
    name: str
    """The built-in name, or the checkpoint directory's own name."""
    fingerprint: str
    """16 hexadecimal digits; see `tunebook.engine.models.fingerprint`."""
    path: Path | None
    """The checkpoint's directory; None for a model made in memory."""
    seconds: float
    """Wall time of the whole call, a conversion included."""
