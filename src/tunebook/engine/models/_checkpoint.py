"""Loads a checkpoint directory, config.json and safetensors, and refuses by name what it cannot load whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.engine.models._dtypes import torch_dtype
from tunebook.engine.models._memory import own_memory
from tunebook.engine.models._quiet import quiet
from tunebook.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("tunebook.engine")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def load(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a causal language model and its tokenizer, if it has one, from a directory.

    A `ModelError` of one line says what is wrong: no or a broken config.json, another kind of model, no safetensors, a
    file of a sharded checkpoint that is missing, tensors that are missing or have another shape. Code that a checkpoint
    brings along is not run and pickled weights are not read: both could do anything.
    """
    _check_config(path)
    _check_files(path)
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch_dtype(dtype) or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # a checkpoint from elsewhere can fail anywhere in Transformers
        raise ModelError(f"cannot load the checkpoint {path}: {_one_line(error)}") from error
    _check_complete(path, info)
    own_memory(model)
    model.requires_grad_(False).eval()
    return model, _tokenizer(path)


def _check_config(path: Path) -> None:
    """Refuse what is not a causal language model before Transformers tries to make one of it."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} is not a checkpoint directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {_one_line(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{file} does not name a model_type, so it is not a Transformers configuration")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if kind not in KNOWN:
        raise ModelError(f"{file}: model_type {kind!r} is not a causal language model of this Transformers version")
    stated = config.get("architectures") or []
    generative = {name for known in KNOWN.values() for name in ([known] if isinstance(known, str) else known)}
    if stated and not generative.intersection(map(str, stated)):
        raise ModelError(f"{file}: {', '.join(map(str, stated))} is not a causal language model")


def _check_files(path: Path) -> None:
    """Refuse a directory whose weights are not all there; Transformers' own message would speak of downloading."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"cannot read {index}: {_one_line(error)}") from error
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing:
            raise ModelError(f"{path} lacks {len(missing)} of its {len(shards)} files of weights, {missing[0]!r} first")
    elif not (path / "model.safetensors").is_file():
        raise ModelError(f"{path} has no model.safetensors; weights in other formats are not read")


def _check_complete(path: Path, info: dict[str, Any]) -> None:
    """Refuse tensors that Transformers made up because the files lack them."""
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of the tensors that its config.json asks for, {missing[0]!r} first: "
            "the weights belong to another architecture or are incomplete"
        )
    if info.get("unexpected_keys"):
        extra = sorted(info["unexpected_keys"])
        _log.warning("%s holds %d tensors that the model does not use, %r first", path, len(extra), extra[0])


def _tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer. A broken one costs the text, not the model: a model can be tuned without."""
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # noqa: BLE001 - as above, and the model is of use without
        _log.warning("the tokenizer of %s cannot be loaded, going on without: %s", path, _one_line(error))
        return None
    return tokenizer


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
