"""What dispatch.py calls of tunebook: ops whose winner does nothing, or little, beside that winner called directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tunebook as tb
from tunebook.dispatch import FREE, Binding, Scope
from tunebook.kernels import linear
from tunebook.records import Tactic

WINNER = Tactic(runner="winner")
#: Rows and columns of the tensors: so small that a real winner takes a microsecond or two as well.
ROWS, WIDTH = 16, 64

Call = Callable[..., Any]


@dataclass(frozen=True)
class Variant:
    """A tuned call and its winner called directly, with the same arguments."""

    name: str
    tuned: Call
    direct: Call
    args: tuple[Any, ...]


def returned(x: Tensor, *rest: Any) -> Tensor:
    """A winner that does nothing."""
    return x


def product(x: Tensor, s: Any) -> Tensor:
    """A real winner."""
    return torch.mul(x, s)


def exact_op(name: str, function: Call, winner: Call, **options: Any) -> tb.Op[..., Any]:
    """An op with a bucket for every number of rows, and `winner` as its one runner."""
    made = tb.op(name, buckets={"x": {0: tb.exact()}}, **options)(function)
    made.runner(WINNER.runner, version="1")(winner)
    return made


def serve(op: Any, scope: Scope, calls: Sequence[tuple[Any, ...]]) -> None:
    """Install the winner for the problem of each call, given with its constants: as if they had been tuned."""
    keys = [op.shape.problem(op.shape.describe(args)).key for args in calls]
    scope.install(dict.fromkeys(keys, WINNER))


def variants() -> list[Variant]:
    """Every kind of tuned call. The first is the one that the goals are about."""
    x, s = torch.ones(ROWS, WIDTH), torch.ones(WIDTH)
    return [*_free(x, s), _binding(x), _attached(x, real=False), *_real(x, s), _attached(x, real=True)]


def _free(x: Tensor, s: Tensor) -> list[Variant]:
    def scale(x: Any) -> Any:
        return x

    def scale_by(x: Any, s: Any) -> Any:
        return x

    alone = exact_op("bench::alone", scale, returned)
    scaled = exact_op("bench::scaled", scale_by, returned)
    serve(alone, FREE, [(x,)])
    serve(scaled, FREE, [(x, 2.0), (x, s)])
    return [
        Variant("op of one tensor", alone, returned, (x,)),
        Variant("op of a tensor and a number", scaled, returned, (x, 2.0)),
        Variant("op of two tensors", scaled, returned, (x, s)),
    ]


def _binding(x: Tensor) -> Variant:
    def project(x: Any, weight: Any) -> Any:
        return x

    op, scope = exact_op("bench::project", project, returned, constants=("weight",)), Scope("bench")
    weight = torch.ones(WIDTH, WIDTH)
    binding: Binding = op.bind(weight, scope=scope)
    serve(op, scope, [(x, weight)])
    return Variant("caller of a binding", binding.caller(), lambda x: returned(x, weight), (x,))


def _real(x: Tensor, s: Tensor) -> list[Variant]:
    def scale_by(x: Any, s: Any) -> Any:
        return x * s

    op = exact_op("bench::real", scale_by, product)
    serve(op, FREE, [(x, s)])
    return [Variant("op of two tensors, a product wins", op, product, (x, s))]


class Plain(nn.Module):
    """A module that calls the winner, all that it needs at hand: the least that a module can cost."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.__dict__["forward"] = call


def _attached(x: Tensor, *, real: bool) -> Variant:
    """An attached `nn.Linear`. The runner that does nothing is added to tunebook's own op, beside those that ship."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)).requires_grad_(False).eval()
    attachment = tb.attach(model, ops=("linear",))
    binding = next(iter(attachment.bindings.values()))
    if not real and WINNER.runner not in linear.runners:
        linear.runner(WINNER.runner, version="1")(returned)
    tactic = Tactic.parse("torch[operand=columns]") if real else WINNER
    key = linear.shape.problem(linear.shape.describe((x, *binding.constants))).key  # type: ignore[union-attr]
    attachment.scope.install({key: tactic})
    winner = binding.bound(tactic)
    name = "attached linear, a matrix product wins" if real else "attached linear"
    return Variant(name, model[0], Plain(lambda x: winner(x)), (x,))


@dataclass(frozen=True)
class Entries:
    """An op with many entries: tensors of as many shapes, all of them resolved."""

    count: int
    op: tb.Op[..., Any]
    tensors: list[Tensor]

    @property
    def one(self) -> Tensor:
        """A tensor from the middle."""
        return self.tensors[len(self.tensors) // 2]


def with_entries(count: int) -> Entries:
    """`count` tactics in the scope of free-standing ops, each met once. The tensors share their memory."""

    def scale(x: Any) -> Any:
        return x

    op = exact_op(f"bench::entries_{count}", scale, returned)
    base = torch.ones(count, 1)
    tensors = [base[:rows] for rows in range(1, count + 1)]
    serve(op, FREE, [(x,) for x in tensors])
    for x in tensors:
        op(x)
    return Entries(count, op, tensors)


def floor(x: Tensor) -> Call:
    """A bare closure that looks `x.shape` up in a dictionary: what any dispatch by shape costs at the least."""
    table = {x.shape: returned}

    def call(x: Tensor) -> Tensor:
        return table[x.shape](x)

    return call
