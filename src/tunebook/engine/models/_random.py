"""Makes a model of a configuration with random weights: quickly, the same each time, and well-behaved."""

from __future__ import annotations

import copy
import math
import zlib
from typing import TYPE_CHECKING

from tunebook.engine.models._dtypes import torch_dtype
from tunebook.engine.models._loaded import Progress, silent
from tunebook.engine.models._quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# Elements filled at a time: 8 MB of random bits, which stay in the last-level cache until they are used.
_CHUNK = 1 << 22
_BIAS_STD = 0.05


def random_model(
    config: PreTrainedConfig, dtype: str = "bfloat16", seed: int = 0, *, progress: Progress | None = None
) -> PreTrainedModel:
    """Make a causal language model with random weights, on the CPU, in eval mode, without gradients.

    Weights are uniform with the variance 1 / fan-in, so that activations keep their size from layer to layer and a
    router spreads tokens over all experts; norms are one; biases are small, yet not zero, so that a forgotten one
    shows. Each parameter has a random stream of its own, made from the seed and its name: the values depend neither on
    the threads nor on the order of the parameters. They are always such that bfloat16 holds them, so the float32 model
    is the exact reference of the bfloat16 one.

    `dtype` is a name that `load` takes; "auto" is the configuration's own, else bfloat16. `config` stays as it was.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    report = progress or silent
    # The model keeps the configuration it is given and notes its dtype there; the caller's own stays as it was.
    config = copy.deepcopy(config)
    wanted = torch_dtype(dtype) or _configured_dtype(config)
    # Parameters are allocated and left unset; buffers (rotary frequencies) are computed as always.
    with quiet(), no_init_weights(), torch.device("cpu"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=wanted)
    model.tie_weights()
    model.requires_grad_(False).eval()

    total = sum(p.numel() for p in model.parameters())
    filled = 0
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # tied: filled under its first name
            seen.add(id(parameter))
            _fill(parameter, module, leaf, f"{path}.{leaf}", seed, tied=bool(config.tie_word_embeddings))
            filled += parameter.numel()
            report("making random weights", filled / total)
    return model


def _configured_dtype(config: PreTrainedConfig) -> torch.dtype:
    import torch

    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def _fill(parameter: nn.Parameter, module: nn.Module, leaf: str, name: str, seed: int, *, tied: bool) -> None:
    from torch import nn

    if leaf.endswith("bias"):
        std = _BIAS_STD
    elif "norm" in type(module).__name__.lower():
        parameter.fill_(1.0)
        return
    elif parameter.ndim == 1:
        std = _BIAS_STD  # such as GPT-OSS's attention sinks
    elif isinstance(module, nn.Embedding):
        # A tied embedding is the output layer too, and scaled as one.
        std = 1 / math.sqrt(parameter.shape[-1]) if tied else 1.0
    else:
        transposed = parameter.ndim == 3 and bool(getattr(module, "is_transposed", False))
        std = 1 / math.sqrt(parameter.shape[-2 if transposed else -1])
    _uniform(parameter, std, seed, name)


def _uniform(tensor: torch.Tensor, std: float, seed: int, name: str) -> None:
    """Fill a contiguous tensor with uniform values of mean 0.

    Sixteen random bits an element, read as a signed integer and scaled: an order of magnitude faster than `normal_`,
    whose generator draws one number after the other.
    """
    import numpy as np
    import torch

    bits = np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    # A uniform variable over [-a, a] has the standard deviation a / sqrt(3); an int16 reaches 2**15.
    scale = std * math.sqrt(3) / 2**15
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        raw = bits.random_raw(-(-part.numel() // 4)).view(np.int16)[: part.numel()]
        rounded = part if part.dtype == torch.bfloat16 else torch.empty_like(part, dtype=torch.bfloat16)
        rounded.copy_(torch.from_numpy(raw)).mul_(scale)
        if rounded is not part:
            part.copy_(rounded)
