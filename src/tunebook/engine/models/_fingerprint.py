"""A digest of what makes a tuning plan fit a model: its architecture, its configuration and its parameters' shapes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Fields that change neither a kernel's shape nor its cost: a model's origin, how it was trained, its token names.
_IRRELEVANT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "sep_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)


def fingerprint(model: PreTrainedModel) -> str:
    """Digest what identifies a model for a tuning plan, as 16 hexadecimal digits.

    Covered are the class, the configuration without paths, versions, token ids and training settings, and each
    parameter's name, dtype and shape. The values of the weights are not: a plan serves a fine-tuned model as well, and
    reading gigabytes would cost more than the plan saves.
    """
    described = {
        "class": type(model).__name__,
        "config": _relevant(model.config.to_diff_dict()),
        "parameters": sorted((name, str(p.dtype), list(p.shape)) for name, p in model.named_parameters()),
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _relevant(value: Any) -> Any:
    """Drop the irrelevant and the private fields of a configuration and of those nested in it."""
    if isinstance(value, dict):
        return {
            str(key): _relevant(item)
            for key, item in value.items()
            if str(key) not in _IRRELEVANT and not str(key).startswith("_")
        }
    if isinstance(value, list | tuple):
        return [_relevant(item) for item in value]
    return value
