"""The op `router`: which experts a token goes to, and with what scores."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebook.dispatch import op
from tunebook.errors import OpError
from tunebook.measure import compare
from tunebook.ops import Description, draw_rows, dtype_name, pow2


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How logits become scores.

    chosen:      the softmax is over the chosen logits alone; else over all, and the greatest of it are chosen.
    renormalise: the chosen probabilities are divided by their sum.
    wide_logits, wide_scores: given as fp32; else in x's dtype.
    """

    chosen: bool = False
    renormalise: bool = False
    wide_logits: bool = False
    wide_scores: bool = False


#: The scorings of Transformers' routers by name: Granite's, OLMoE's, Qwen3's, and Mixtral's.
SCORINGS: Mapping[str, Scoring] = MappingProxyType(
    {
        "top_k_softmax": Scoring(chosen=True, wide_logits=True),
        "softmax_top_k": Scoring(),
        "softmax_top_k_norm": Scoring(renormalise=True),
        "softmax_top_k_norm_fp32": Scoring(renormalise=True, wide_scores=True),
    }
)
#: Logits closer than this may have equal probabilities in fp32.
_NEAR = 1e-6


def _describe(args: Sequence[Any]) -> Description:
    x, weight, choices, scoring = args
    if x.ndim != 2:
        raise OpError(f"router takes x [M, H], not {x.ndim} dimensions")
    attrs = (("E", str(weight.shape[0])), ("K", str(choices)), ("H", str(x.shape[1])), ("scoring", scoring))
    names = tuple(dict.fromkeys((dtype_name(x.dtype), dtype_name(weight.dtype))))
    return Description(attrs, names, {"M": x.shape[0]})


def _resample(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    (x,) = dynamic
    return (x.index_select(0, draw_rows(len(x), sizes["M"], rng).to(x.device)),)


def _extremes(args: Sequence[Any], rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield "all logits are equal", (torch.zeros_like(args[0]),)


def agree(got: Any, expected: Any, args: Sequence[Any]) -> float | str:
    """`compare` for routers: among (nearly) equal logits any may be chosen, in any order.

    The logits must be the expected ones, the choice the greatest of those that were returned, no expert twice, and the
    scores the expected ones, which equal logits do not change. What is returned as fp32 is as exact as x's dtype.
    """
    if not _formed(got, expected):
        return compare(got, expected)
    worst = 0.0
    for position in (0, 1):
        found = compare(*(value[position].to(args[0].dtype) for value in (got, expected)))
        if isinstance(found, str):
            return f"output {position}: {found}"
        worst = max(worst, found)
    wrong = _wrong_choice(got[0].double(), got[2])
    return f"output 2: {wrong}" if wrong else worst


def _formed(got: Any, expected: Any) -> bool:
    """Whether these are three tensors of the expected shapes and dtypes."""
    if not (isinstance(got, tuple | list) and len(got) == 3 and all(isinstance(value, Tensor) for value in got)):
        return False
    return all(one.shape == two.shape and one.dtype == two.dtype for one, two in zip(got, expected, strict=True))


def _wrong_choice(logits: Tensor, index: Tensor) -> str | None:
    """What is wrong with a choice among these logits, or None."""
    if index.numel() == 0:
        return None
    if int(index.min()) < 0 or int(index.max()) >= logits.shape[-1]:
        return f"an expert outside 0…{logits.shape[-1] - 1}"
    ordered = index.sort(dim=-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return "a token has an expert twice"
    greatest = logits.topk(index.shape[-1], dim=-1).values
    far = (logits.gather(1, index) - greatest).abs() > _NEAR * (1 + greatest.abs())
    if bool(far.any()):
        return f"row {int(far.any(dim=1).nonzero()[0])} has not chosen the greatest logits in falling order"
    return None


@op(
    "router",
    buckets={"x": {0: pow2(name="M")}},
    constants=("weight", "choices", "scoring"),
    describe=_describe,
    resample=_resample,
    extremes=_extremes,
    agree=agree,
    lead="x",
)
def router(x: Tensor, weight: Tensor, choices: int, scoring: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits x [M, H] times weight [E, H] transposed; of each row the `choices` greatest, in falling order.

    Returns the logits [M, E], the scores [M, choices] and the experts' index [M, choices] int64; `scoring` is a name of
    `SCORINGS`. Equal logits may come in any order.
    """
    how = SCORINGS[scoring]
    logits = F.linear(x, weight)
    if how.wide_logits:
        logits = logits.float()
    if how.chosen:
        values, index = logits.topk(choices, dim=-1)
        scores = torch.softmax(values, dim=-1, dtype=torch.float32)
    else:
        scores, index = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(choices, dim=-1)
    if how.renormalise:
        scores /= scores.sum(dim=-1, keepdim=True)
    return logits, scores if how.wide_scores else scores.to(x.dtype), index
