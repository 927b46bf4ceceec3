"""An op of one's own: python examples/own_op.py, then tunebook show."""

import torch
import torch.nn.functional as F

import tunebook as tb


@tb.op("demo::bag", buckets={"ids": {0: tb.pow2(max=512)}})  # a verdict each for 1, 2, 4 … 512 rows
def bag(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:  # runs untuned, and says what is right
    return table[ids].sum(dim=1)


@bag.runner("fused")
def fused(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(ids, table, mode="sum")


@bag.runner("blocked", space={"rows": (8, 64)})  # each combination of values is one tactic
def blocked(ids: torch.Tensor, table: torch.Tensor, *, rows: int) -> torch.Tensor:
    return torch.cat([table[part].sum(dim=1) for part in ids.split(rows)])


ids, table = torch.randint(0, 10_000, (512, 32)), torch.randn(10_000, 64)
with tb.autotune():  # collects the calls of the block, and tunes them on leaving it
    bag(ids, table)
y = bag(ids, table)  # one look-up, then the winner for 512 rows
