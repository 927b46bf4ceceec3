"""What every experts kernel shares: pairs sorted by expert, the gate, and the weighted sum over a token's experts.

A *pair* is one (token, choice) cell of ``index``; there are ``S = M * K``. The *sentinel* is an index equal to the
number of experts: such a pair has no expert and contributes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebook.errors import OpError

Gate = Callable[[Tensor], Tensor]

_gelu_tanh = partial(F.gelu, approximate="tanh")

#: Activation functions by the names that model configurations use.
ACTIVATIONS: dict[str, Gate] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

#: Up to this many tokens a batched product sums a token's experts faster than an embedding bag.
_FEW_TOKENS = 4


def activation_function(name: str) -> Gate:
    """The elementwise function of an activation's name. Raises `OpError` for a name that is not in `ACTIVATIONS`."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise OpError(
            f"activation {name!r} is not known to the experts kernels: use one of {', '.join(sorted(ACTIVATIONS))}"
        ) from None


@dataclass(frozen=True, slots=True)
class Groups:
    """The pairs of one call, ordered by expert (a stable sort, so that equal routings give equal sums).

    Attributes:
        counts: pairs of each expert, length E; the sentinel's pairs are in none.
        total: pairs that have an expert: ``sum(counts)``. The sentinel's pairs sort behind them.
        tokens: [S] int64, the token of each sorted pair.
        slots: [S] int64, the sorted position of each pair in ``index``'s own order.
        experts: [S] int64, the expert of each sorted pair.
    """

    counts: list[int]
    total: int
    tokens: Tensor
    slots: Tensor
    experts: Tensor

    def active(self) -> tuple[list[int], list[int]]:
        """The experts that have pairs, ascending, and the sizes of their runs.

        A last size for the sentinel's run follows where there is one, so that the sizes always add up to S.
        """
        experts = [expert for expert, count in enumerate(self.counts) if count]
        sizes = [self.counts[expert] for expert in experts]
        if self.total < len(self.tokens):
            sizes.append(len(self.tokens) - self.total)
        return experts, sizes

    def known(self, scores: Tensor) -> Tensor:
        """The scores [M, K] with zeros for the pairs that have no expert, whatever they held."""
        if self.total == len(self.slots):
            return scores
        return scores.masked_fill((self.slots >= self.total).view_as(scores), 0)


def group(index: Tensor, experts: int) -> Groups:
    """Order the pairs of ``index`` ([M, K] int64, values 0 to ``experts``) by expert."""
    flat = index.reshape(-1)
    ordered, order = flat.sort(stable=True)
    pairs = flat.numel()
    counts = torch.bincount(flat, minlength=experts + 1)[:experts].tolist()
    slots = torch.empty_like(order)
    slots[order] = torch.arange(pairs, device=order.device)
    return Groups(counts, sum(counts), order // max(1, index.shape[1]), slots, ordered)


def lone_token(index: Tensor, experts: int) -> list[int]:
    """The experts of a single token, in its own order: it needs no sorting and no gathering.

    Empty where there is not exactly one token, or where one of its choices is the sentinel.
    """
    if len(index) != 1:
        return []
    chosen: list[int] = index[0].tolist()
    return [] if experts in chosen else chosen


def gated(gate_up: Tensor, act: Gate) -> Tensor:
    """``act(gate) * up`` for rows [S, 2I] whose first I columns are the gate: [S, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return act(gate).mul_(up)


def gated_columns(gate_up: Tensor, act: Gate) -> Tensor:
    """``act(gate) * up`` for columns [..., 2I, S] whose first I rows are the gate: [..., I, S]."""
    gate, up = gate_up.chunk(2, dim=-2)
    return act(gate).mul_(up)


def weighted_sum(outputs: Tensor, slots: Tensor | None, scores: Tensor) -> Tensor:
    """Sum each token's pairs, weighted by its scores, in fp32 and in the order of ``index``: deterministic.

    ``outputs`` [S, H] holds one row a pair; ``slots`` [S] says where each pair's row is (None: in order); ``scores`` is
    [M, K] with ``S = M * K``. Returns [M, H] in the dtype of ``outputs``. A pair without an expert must be zeros.

    PyTorch's embedding bag gathers, weighs and adds in one pass, in fp32, but wants weights in the dtype of its table.
    Where outputs are narrower than scores, it gets each score as the sum of two narrow numbers, hence twice the bits,
    without a widened copy of the outputs.
    """
    tokens, choices = scores.shape
    if tokens <= _FEW_TOKENS:
        rows = outputs if slots is None else outputs.index_select(0, slots)
        summed = torch.bmm(scores.float().unsqueeze(1), rows.float().view(tokens, choices, outputs.shape[1]))
        return summed.squeeze(1).to(outputs.dtype)
    if slots is None:
        slots = torch.arange(tokens * choices, device=outputs.device)
    rows_of = slots.view(tokens, choices)
    weights = scores.to(outputs.dtype)
    if outputs.dtype != torch.float32 and scores.dtype != outputs.dtype:
        rest = (scores - weights.to(scores.dtype)).to(outputs.dtype)
        weights, rows_of = torch.cat((weights, rest), 1), torch.cat((rows_of, rows_of), 1)
    return F.embedding_bag(rows_of, outputs, per_sample_weights=weights, mode="sum")


def pair_bytes(x: Tensor, index: Tensor, down: Tensor) -> int:
    """Bytes that a kernel with one row a pair needs: gathered rows, both projections, the weighted sum's copies.

    ``x`` is [M, H], ``index`` [M, K], ``down`` [E, H, I]; index tensors are counted at 64 bytes a pair.
    """
    hidden, inner = down.shape[1], down.shape[2]
    few = 2 * hidden * 4 if len(x) <= _FEW_TOKENS else 0
    return index.numel() * ((3 * hidden + 4 * inner) * x.element_size() + few + 64) + 4 * x.numel()
