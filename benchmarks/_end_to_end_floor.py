"""The memory-traffic floor of a decode step: the bytes that it must read, and the bandwidth at which memory can be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: Read by one sample of the bandwidth: far more than caches hold, and about what a decode step reads.
PROBE_BYTES = 1 << 30


def experts_used(model: Any, step: Callable[[], Any]) -> list[int]:
    """How many experts each layer of one step uses, in the order of the layers, by what its router chose in that step."""
    chosen: list[int] = []

    def note(_: Any, args: tuple[Any, ...]) -> None:
        chosen.append(int(torch.unique(args[1]).numel()))

    hooks = [module.register_forward_pre_hook(note) for module in experts_of(model)]
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return chosen


def experts_of(model: Any) -> list[Any]:
    """The modules of Transformers' ``ExpertsInterface``, which take states, chosen experts and their weights."""
    return [module for module in model.modules() if hasattr(module, "is_concatenated")]


def step_bytes(model: Any, used: list[int], sequences: int, context: int) -> int:
    """The least bytes that a decode step reads: each weight that it needs once, and the key-value cache.

    `used` is what `experts_used` gives, `context` how many tokens each sequence has then. An embedding is read by row; where
    it is the output layer too, all of it is read. Activations are left out: they fit into caches.
    """
    experts = experts_of(model)
    stacked = {id(p): module for module in experts for p in module.parameters()}
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    multiplied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    total = 0
    for parameter in model.parameters():
        if id(parameter) in looked_up - multiplied:
            total += sequences * parameter[0].nbytes
        elif id(parameter) not in stacked:
            total += parameter.nbytes
    for module, count in zip(experts, used, strict=True):
        total += sum(count * parameter[0].nbytes for parameter in module.parameters())
    return total + sequences * context * token_bytes(model)


def token_bytes(model: Any) -> int:
    """What one token takes in the key-value cache, in bytes."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * model.dtype.itemsize)


class ReadProbe:
    """Reads memory as fast as all threads can: the dot product of two halves of a buffer, which waits for memory alone."""

    def __init__(self) -> None:
        self._halves = torch.ones(PROBE_BYTES // 4, dtype=torch.float32).view(2, -1)

    def bandwidth(self) -> float:
        """Bytes a second."""
        start = time.perf_counter()
        torch.dot(*self._halves)
        return PROBE_BYTES / (time.perf_counter() - start)
