"""The experts layer in plain PyTorch, several ways.

Semantics of all of them, for x [M, H] (bf16 or fp32), index [M, K] int64, scores [M, K] (any float dtype), gate_up
[E, 2I, H] (gate rows first), down [E, H, I] and the name of an activation:

    out[m] = sum over k of scores[m, k] * down[e] @ (act(gate) * up),   e = index[m, k],  [gate; up] = gate_up[e] @ x[m]

in x's dtype, [M, H]. An index equal to E means that no expert was chosen and contributes nothing. The sum over k is
deterministic and in fp32. For inference: products are written into buffers, so no gradient may be recorded.

*Rows* keep a token's values together, as a model does. *Columns* compute the transposed product, weight times tokens:
the weight is then the left operand, which oneDNN reads as it lies, whereas it rearranges a transposed right operand at
each call. That makes small batches faster without a second copy of the weights; the price is that the result must be
transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebook.kernels._experts._routing import (
    Groups,
    activation_function,
    gated,
    gated_columns,
    group,
    lone_token,
    pair_bytes,
    weighted_sum,
)

#: A grouped product wants every row and column to begin on a multiple of this.
_GROUPED_ALIGNMENT_BYTES = 16


@dataclass(frozen=True, slots=True)
class TransposedExperts:
    """Contiguous transposed weights, a second copy: gate_up [E, H, 2I], down [E, I, H]."""

    gate_up: Tensor
    down: Tensor
    activation: str


def transpose(gate_up: Tensor, down: Tensor, activation: str) -> TransposedExperts:
    """Prepare for `loop_transposed`, `padded_bmm_transposed` and `grouped_mm_transposed`, which share the layout."""
    activation_function(activation)
    return TransposedExperts(gate_up.mT.contiguous(), down.mT.contiguous(), activation)


def restore(prepared: TransposedExperts, *, last: bool) -> tuple[Tensor, Tensor]:
    """gate_up and down, bit for bit."""
    return prepared.gate_up.mT.contiguous(), prepared.down.mT.contiguous()


def loop(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """One product per expert, its tokens' rows times the transposed weight."""
    return _loop_rows(x, index, scores, gate_up.mT, down.mT, activation)


def loop_transposed(x: Tensor, index: Tensor, scores: Tensor, prepared: TransposedExperts) -> Tensor:
    """`loop` on weights that `transpose` prepared."""
    return _loop_rows(x, index, scores, prepared.gate_up, prepared.down, prepared.activation)


def loop_columns(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """One product per expert, weight times its tokens' columns; a lone token takes matrix-vector products."""
    act = activation_function(activation)
    if lone := lone_token(index, len(gate_up)):
        hidden = gated(_each_vector(gate_up, x.expand(len(lone), -1), lone), act)
        return weighted_sum(_each_vector(down, hidden, lone), None, scores)
    groups = group(index, len(gate_up))
    experts, sizes = groups.active()
    hidden = gated_columns(_each_column(gate_up, x.index_select(0, groups.tokens).t(), experts, sizes), act)
    output = _each_column(down, hidden, experts, sizes).t().contiguous()
    return _combine(output, groups, scores)


def padded_bmm(
    x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str, *, run: int = 8
) -> Tensor:
    """Batched products, weight times columns, over runs of neighbouring experts that have tokens.

    A run has at most ``run`` experts (0: no limit), each padded to the tokens of the run's largest. Longer runs mean
    fewer products, shorter ones less padding and smaller buffers where tokens are spread unevenly.
    """
    act = activation_function(activation)

    def apply(first: int, last: int, rows: Tensor, out: Tensor) -> None:
        hidden = gated_columns(torch.bmm(gate_up[first:last], rows.mT), act)
        out.copy_(torch.bmm(down[first:last], hidden).mT)

    return _padded(x, index, scores, len(gate_up), run, apply)


def padded_bmm_transposed(
    x: Tensor, index: Tensor, scores: Tensor, prepared: TransposedExperts, *, run: int = 8
) -> Tensor:
    """`padded_bmm`, rows times weight, on weights that `transpose` prepared."""
    act = activation_function(prepared.activation)

    def apply(first: int, last: int, rows: Tensor, out: Tensor) -> None:
        hidden = gated(torch.bmm(rows, prepared.gate_up[first:last]), act)
        torch.bmm(hidden, prepared.down[first:last], out=out)

    return _padded(x, index, scores, len(prepared.gate_up), run, apply)


def grouped_mm(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """PyTorch's grouped product, rows times transposed weight. For sizes that `grouped_refusal` accepts."""
    return _grouped(x, index, scores, gate_up.mT, down.mT, activation)


def grouped_mm_transposed(x: Tensor, index: Tensor, scores: Tensor, prepared: TransposedExperts) -> Tensor:
    """`grouped_mm` on weights that `transpose` prepared."""
    return _grouped(x, index, scores, prepared.gate_up, prepared.down, prepared.activation)


def batched_mm(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Gathers the weights of every pair and takes one batched product; `batched_workspace` says what that costs."""
    pairs = index.reshape(-1)
    missing = pairs == len(gate_up)
    pairs = pairs.masked_fill(missing, 0)
    columns = x.repeat_interleave(index.shape[1], 0).unsqueeze(2)
    hidden = gated_columns(torch.bmm(gate_up[pairs], columns), activation_function(activation))
    output = torch.bmm(down[pairs], hidden).squeeze(2).masked_fill_(missing.unsqueeze(1), 0)
    return weighted_sum(output, None, scores.masked_fill(missing.view_as(scores), 0))


def loop_workspace(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> int:
    """Bytes of extra memory that one call of a loop or of a grouped product needs."""
    return pair_bytes(x, index, down)


def padded_workspace(
    x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str, *, run: int = 8
) -> int:
    """Bytes of extra memory that one call of a padded product needs, for the routing at hand."""
    counts = torch.bincount(index.reshape(-1), minlength=len(gate_up) + 1)[: len(gate_up)].tolist()
    runs, rows = _runs(counts, run)
    hidden, inner = down.shape[1], down.shape[2]
    largest = max(((last - first) * size for first, last, size in runs), default=0)
    padded = rows * 2 * hidden + largest * (4 * inner + hidden)
    return padded * x.element_size() + pair_bytes(x, index, down)


def batched_workspace(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> int:
    """Bytes of extra memory that one call of `batched_mm` needs: a copy of its expert's weights for every pair."""
    weights = gate_up.shape[1] * gate_up.shape[2] + down.shape[1] * down.shape[2]
    return index.numel() * weights * gate_up.element_size() + pair_bytes(x, index, down)


def grouped_refusal(hidden: int, intermediate: int, element_size: int) -> str | None:
    """Why the grouped products cannot take H, I of these sizes (values) and element size (bytes), or None."""
    for name, size in (("hidden size", hidden), ("intermediate size", intermediate)):
        if size * element_size % _GROUPED_ALIGNMENT_BYTES:
            return f"grouped_mm needs rows of a multiple of {_GROUPED_ALIGNMENT_BYTES} bytes; {name} is {size}"
    return None


def _loop_rows(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Products of rows with weights [E, in, out], one an expert, and the weighted sum."""
    act = activation_function(activation)
    if lone := lone_token(index, len(gate_up)):
        ones = [1] * len(lone)
        hidden = gated(_each_row(gate_up, x.expand(len(lone), -1), lone, ones), act)
        return weighted_sum(_each_row(down, hidden, lone, ones), None, scores)
    groups = group(index, len(gate_up))
    experts, sizes = groups.active()
    hidden = gated(_each_row(gate_up, x.index_select(0, groups.tokens), experts, sizes), act)
    return _combine(_each_row(down, hidden, experts, sizes), groups, scores)


def _each_vector(weights: Tensor, rows: Tensor, experts: Sequence[int]) -> Tensor:
    """Each expert's weight [out, in] times its one row of [S, in]: [S, out]."""
    out = rows.new_empty(len(rows), weights.shape[1])
    for expert, vector, result in zip(experts, rows.unbind(), out.unbind(), strict=True):
        torch.mv(weights[expert], vector, out=result)
    return out


def _each_row(weights: Tensor, rows: Tensor, experts: Sequence[int], sizes: list[int]) -> Tensor:
    """Each expert's rows of [S, in], in runs of `sizes`, times its weight [in, out]: [S, out].

    A last run without an expert in the list, the sentinel's, is left unwritten.
    """
    out = rows.new_empty(len(rows), weights.shape[2])
    pieces = zip(experts, rows.split_with_sizes(sizes), out.split_with_sizes(sizes), strict=False)
    for expert, left, result in pieces:
        torch.mm(left, weights[expert], out=result)
    return out


def _each_column(weights: Tensor, columns: Tensor, experts: Sequence[int], sizes: list[int]) -> Tensor:
    """Each expert's weight [out, in] times its columns of [in, S], in runs of `sizes`: [out, S]; as `_each_row`."""
    out = columns.new_empty(weights.shape[1], columns.shape[1])
    pieces = zip(experts, columns.split_with_sizes(sizes, 1), out.split_with_sizes(sizes, 1), strict=False)
    for expert, right, result in pieces:
        torch.mm(weights[expert], right, out=result)
    return out


def _grouped(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Grouped products of rows with weights [E, in, out], and the weighted sum."""
    groups = group(index, len(gate_up))
    ends = torch.tensor(list(accumulate(groups.counts)), dtype=torch.int32, device=index.device)
    hidden = F.grouped_mm(x.index_select(0, groups.tokens), gate_up, offs=ends)
    hidden = gated(hidden, activation_function(activation))
    return _combine(F.grouped_mm(hidden, down, offs=ends), groups, scores)


def _runs(counts: Sequence[int], limit: int) -> tuple[list[tuple[int, int, int]], int]:
    """Runs (first, last exclusive, largest count) of neighbouring experts with pairs, and the rows they take padded."""
    runs: list[tuple[int, int, int]] = []
    for expert, count in enumerate(counts):
        if not count:
            continue
        first, last, size = runs[-1] if runs else (0, -1, 0)
        if last == expert and not 0 < limit <= last - first:
            runs[-1] = (first, expert + 1, max(size, count))
        else:
            runs.append((expert, expert + 1, count))
    return runs, sum((last - first) * size for first, last, size in runs)


def _padded(
    x: Tensor,
    index: Tensor,
    scores: Tensor,
    experts: int,
    limit: int,
    apply: Callable[[int, int, Tensor, Tensor], None],
) -> Tensor:
    """Lay out each run's tokens as [experts of the run, largest count, H], `apply` its products, and sum.

    The padding repeats the call's first token; its results are never read.
    """
    groups = group(index, experts)
    runs, padded = _runs(groups.counts, limit)
    starts = list(accumulate(groups.counts, initial=0))
    shifts, base = [0] * (experts + 1), 0
    for first, last, size in runs:
        for expert in range(first, last):
            shifts[expert] = base - starts[expert]
            base += size
    places = torch.tensor(shifts, device=index.device)[groups.experts]
    places += torch.arange(len(places), device=index.device)
    sources = groups.tokens.new_zeros(padded)
    sources[places[: groups.total]] = groups.tokens[: groups.total]
    missing = groups.total < len(places)
    if missing:
        places[groups.total :] = padded
    rows = x.index_select(0, sources)
    output = x.new_empty(padded + missing, x.shape[1])
    output[padded:].zero_()
    base = 0
    for first, last, size in runs:
        here = slice(base, base := base + (last - first) * size)
        shape = (last - first, size, x.shape[1])
        apply(first, last, rows[here].view(shape), output[here].view(shape))
    return weighted_sum(output, places[groups.slots], groups.known(scores))


def _combine(output: Tensor, groups: Groups, scores: Tensor) -> Tensor:
    """The weighted sum of sorted outputs [S, H], of which the last, those without an expert, are still unwritten."""
    if groups.total < len(output):
        output[groups.total :].zero_()
    return weighted_sum(output, groups.slots, groups.known(scores))
