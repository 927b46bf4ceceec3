"""Loads a model by its built-in name or from a checkpoint directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.engine.models import _checkpoint, _dtypes, _registry, _shapes
from tunebook.engine.models._fingerprint import fingerprint
from tunebook.engine.models._loaded import LoadedModel, Progress, silent
from tunebook.engine.models._random import random_model
from tunebook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_RANDOM: dict[str, Callable[[], PreTrainedConfig]] = {
    "tiny-moe": _shapes.tiny_moe,
    "granite-1b-moe": _shapes.granite_1b_moe,
    "qwen3-moe-8l": _shapes.qwen3_moe_8l,
}


def load(model: str, *, dtype: str = "bfloat16", progress: Progress | None = None) -> LoadedModel:
    """Load a model onto the CPU, in eval mode and without gradients. Nothing is ever downloaded.

    `model` is a built-in name, which wins over a directory of that name, or the path of a checkpoint directory. `dtype`
    is "bfloat16", "float32", "float16", or "auto" for what the checkpoint says. A model that cannot be loaded is a
    `ModelError` of one line; a dtype with another name is a `UsageError`.
    """
    started = time.perf_counter()
    report = progress or silent
    _dtypes.torch_dtype(dtype)
    path: Path | None = None
    tokenizer = None
    name = model
    if model in _RANDOM:
        loaded = random_model(_RANDOM[model](), dtype, progress=report)
    elif model == "smollm2-moe":
        from tunebook.engine.models import _smollm2

        loaded, tokenizer, path = _smollm2.load(dtype, report)
    else:
        path = _directory(model)
        name = path.name
        report(f"loading {name}", None)
        loaded, tokenizer = _checkpoint.load(path, dtype)
    return LoadedModel(
        model=loaded,
        tokenizer=tokenizer,
        name=name,
        fingerprint=fingerprint(loaded),
        path=path,
        seconds=time.perf_counter() - started,
    )


def _directory(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_file():
        raise ModelError(f"{model!r} is a file; give the checkpoint directory that holds it")
    if not model or not path.is_dir():
        raise _registry.unknown(model)
    return path.resolve()
