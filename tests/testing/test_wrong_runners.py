"""Runners that break a promise are told by name, with the remedy, in one line; and one that keeps them all passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.errors import UsageError
from tunebook.ops import load_file
from tunebook.records import Problem
from tunebook.testing import Case, ContractError, UnavailableError, cases_of, check_runner

KEY = "contract::project|x.1=16,weight.0=12,weight.1=16|fp32|M≤8"
LEFT: list[torch.Tensor] = []


def example(problem: Problem, sizes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(sizes["M"], 16, generator=drawn), torch.randn(12, 16, generator=drawn)


@pytest.fixture
def op(clean_ops: None) -> Iterator[Any]:
    @tb.op("contract::project", buckets={"x": {0: tb.pow2(name="M")}}, constants=("weight",), example=example)
    def project(x, weight):
        return x @ weight.t()

    yield project
    LEFT.clear()


def said(op: Any, function: Any, space: Any = None, **options: Any) -> str:
    """What the check says of a runner that is declared so."""
    op.runner("mine", space, **options)(function)
    with pytest.raises(ContractError) as error:
        check_runner(op, "mine", [KEY])
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("runner mine of op contract::project: ")
    assert ";" in text, "no remedy"
    return text


def right(x, weight, **params):
    return x @ weight.t()


def row_by_row(x: torch.Tensor, weight: torch.Tensor, **params: int) -> torch.Tensor:
    return (x[:, None] * weight).sum(-1)


def on_transposed(x, prepared, **params):
    return x @ prepared


def transposed(weight, **params):
    return weight.t().contiguous()


def given_back(prepared, *, last):
    return (prepared.t().contiguous(),)


def test_a_runner_that_keeps_its_promises_passes(op: Any) -> None:
    op.runner("plain", {"way": (1, 2)}, workspace=lambda x, weight, way: 64, bits=lambda way: "all")(row_by_row)
    op.runner(
        "prepared",
        {"way": (1, 2)},
        prepare=transposed,
        layout=lambda way: "transposed",
        restore=given_back,
        supports=lambda problem, way: None if way == 1 else "only one way",
    )(on_transposed)
    assert [tactic.name for tactic in check_runner(op, "plain", [KEY])] == ["plain[way=1]", "plain[way=2]"]
    assert [tactic.name for tactic in check_runner(op, "prepared", [KEY])] == ["prepared[way=1]"]


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_a_size_of_the_bucket_on_which_it_is_wrong(op: Any, rows: int) -> None:
    """M≤8 holds the sizes from 5 to 8; what is wrong for one row alone is of another bucket."""

    def wrong(x, weight):
        return (2 if len(x) == rows else 1) * (x @ weight.t())

    if rows == 1:
        op.runner("mine")(wrong)
        assert check_runner(op, "mine", [KEY])
    else:
        text = said(op, wrong)
        assert f"M={rows}: row" in text
        assert "it must give what the op's own function gives" in text


def test_wrong_on_an_extreme(op: Any) -> None:
    op.extremes = lambda args, rng: [("all zero", (torch.zeros_like(args[0]),))]

    def wrong(x, weight):
        return x @ weight.t() + (0.0 if x.any() else 1.0)

    assert "all zero: row" in said(op, wrong)


def test_it_changes_its_arguments(op: Any) -> None:
    def on_input(x, weight):
        made = x @ weight.t()
        x.zero_()
        return made

    def on_weights(x, weight):
        return x @ weight.mul_(1 + 1e-6).t()

    assert "argument 0 was changed by the call" in said(op, on_input)
    assert "the weights were changed by the call" in said(op, on_weights)
    op.runners.pop("mine", None)

    def much(x, weight):
        made = x @ weight.t()
        weight.add_(1)
        return made

    assert "the weights were changed by the call" in said(op, much), "and not the outputs that are wrong for it"


def test_its_output_is_an_argument(clean_ops: None) -> None:
    """As that of a conversion where there is nothing to convert."""

    def rows(problem: Problem, sizes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
        return (torch.randn(sizes["M"], 4, generator=torch.Generator().manual_seed(seed)),)

    @tb.op("contract::plus", buckets={"x": {0: tb.pow2(name="M")}}, example=rows)
    def plus(x):
        return x + 0.0

    @tb.op("contract::same", buckets={"x": {0: tb.pow2(name="M")}}, example=rows)
    def same(x):
        return x

    for op in (plus, same):
        op.runner("mine")(lambda x: x.view(-1, 4))
    with pytest.raises(ContractError, match="its output is memory of an argument; return memory of its own"):
        check_runner(plus, "mine", ["contract::plus|x.1=4|fp32|M≤8"])
    assert check_runner(same, "mine", ["contract::same|x.1=4|fp32|M≤8"]), "the op's own function gives it as well"


def test_its_output_has_other_strides(op: Any) -> None:
    """A model takes views of what a linear layer returns."""

    def turned(x, weight):
        return (weight @ x.t()).t()

    assert "strides (1, 5), not (12, 1)" in said(op, turned)


def test_it_forgets_to_write_a_part(op: Any) -> None:
    def partly(x, weight):
        made = torch.empty(len(x), 12)
        made[:, 1:] = x @ weight[1:].t()
        return made

    assert "NaN" in said(op, partly)


def test_it_returns_the_same_memory(op: Any) -> None:
    def lazy(x, weight):
        if not LEFT:
            LEFT.append(torch.empty(8, 12))
        return torch.matmul(x, weight.t(), out=LEFT[0][: len(x)])

    assert "the same memory at each call" in said(op, lazy)


def test_the_op_itself_is_wrong(op: Any) -> None:
    op.runner("mine")(right)
    op.extremes = lambda args, rng: [("too wide", (torch.ones(4, 17),))]
    with pytest.raises(ContractError, match=r"op contract::project: .* the op itself fails: OpError: .*extremes"):
        check_runner(op, "mine", [KEY])


def test_it_raises_on_what_it_does_not_refuse(op: Any) -> None:
    def fussy(x, weight):
        raise NotImplementedError("not this one")

    text = said(op, fussy)
    assert "NotImplementedError: not this one" in text
    assert "let supports= say why" in text


def test_it_ends_the_program(op: Any) -> None:
    def leaving(x, weight):
        raise SystemExit(3)

    assert "it raises SystemExit" in said(op, leaving)


def test_a_predicate_that_raises(op: Any) -> None:
    assert "KeyError" in said(op, right, {"way": (1,)}, supports=lambda problem, way: dict(problem.attrs)["missing"])
    assert "its within raises KeyError" in said(
        op, right, {"way": (1,)}, within=lambda problem, way: dict(problem.attrs)["missing"]
    )
    assert "availability check failed: ZeroDivisionError" in said(op, right, available=lambda: 1 // 0)


def test_a_predicate_that_changes_its_mind(op: Any) -> None:
    answers = iter([None, "no"] * 9)
    assert "supports says None, then 'no'" in said(op, right, supports=lambda problem: next(answers))


def test_it_takes_nothing_that_was_given(op: Any) -> None:
    assert "takes none of the problems that were given (too small)" in said(op, right, supports=lambda p: "too small")


def test_it_cannot_run_here(op: Any) -> None:
    op.runner("mine", available=lambda: "needs another machine")(right)
    with pytest.raises(UnavailableError, match="runner mine of op contract::project: needs another machine"):
        check_runner(op, "mine", [KEY])


def test_a_runner_that_there_is_not(op: Any) -> None:
    with pytest.raises(UsageError, match="has no runner 'nobody'; it has none"):
        check_runner(op, "nobody", [KEY])


def test_a_workspace_that_is_no_number_of_bytes(op: Any) -> None:
    assert "its workspace is -1" in said(op, right, workspace=lambda x, weight: -1)
    assert "its workspace is 1.5" in said(op, right, workspace=lambda x, weight: 1.5)
    assert "its workspace raises TypeError" in said(op, right, workspace=lambda x: 1)


# Bits


def test_equal_bits_that_are_not(op: Any) -> None:
    def noisy(x, weight, way):
        return (x @ weight.t()) * (1 + 1e-5 * torch.rand(()))

    assert "two equal calls differ in bits" in said(op, noisy, {"way": (1,)}, bits=lambda way: "one")

    def by_batch(x, weight, way):
        return row_by_row(x, weight) * (1 + 1e-6 * (len(x) - 1))

    assert "a row alone differs in bits" in said(op, by_batch, {"way": (1,)}, bits=lambda way: "one")

    def by_way(x, weight, way):
        return row_by_row(x, weight) * (1 + 1e-6 * way)

    assert "mine[way=2]: it differs in bits from mine[way=1]" in said(
        op, by_way, {"way": (1, 2)}, bits=lambda way: "one"
    )


# Weights


def test_prepared_weights_whose_bytes_cannot_be_seen(op: Any) -> None:
    def hidden(weight):
        return lambda x: x @ weight.t()

    text = said(op, lambda x, prepared: prepared(x), prepare=hidden)
    assert "take no bytes that can be seen" in text
    assert "nbytes" in text


def test_one_layout_of_two_forms(op: Any) -> None:
    def padded(weight, way):
        return torch.cat([weight.t().contiguous(), torch.zeros(way - 1, 12)])

    def cut(x, prepared, way):
        return x @ prepared[:16]

    assert "takes 816 bytes, and 768 for mine[way=1]" in said(
        op, cut, {"way": (1, 2)}, prepare=padded, layout=lambda way: "one"
    )

    def turned(weight, way):
        return weight.t().contiguous() if way == 1 else weight.t().flip(0).contiguous()

    def turning(x, prepared, way):
        return x @ (prepared if way == 1 else prepared.flip(0))

    text = said(op, turning, {"way": (1, 2)}, prepare=turned, layout=lambda way: "one")
    assert "on the layout 'mine:one' that mine[way=1] has made" in text


def test_prepare_that_fails(op: Any) -> None:
    def failing(weight):
        raise ValueError("odd width")

    assert "preparing it raises ValueError: odd width" in said(op, on_transposed, prepare=failing)


def test_weights_that_do_not_come_back(op: Any) -> None:
    assert "gives other weights than it was prepared from" in said(
        op, on_transposed, prepare=transposed, restore=lambda prepared, *, last: (prepared.t() * 1.001,)
    )

    def greedy(prepared, *, last):
        made = (prepared.t().contiguous(),)
        prepared.zero_()
        return made

    assert "restore(last=False) spoils what was prepared" in said(op, on_transposed, prepare=transposed, restore=greedy)


def test_conversion_that_is_wrong(op: Any) -> None:
    def half(weight):
        weight[0] = 0
        return

    assert "convert returns None, and has changed the weights" in said(
        op, on_transposed, prepare=transposed, restore=given_back, convert=half
    )

    def other(weight):
        return weight.view(16, 12)

    assert "on converted weights: " in said(op, on_transposed, prepare=transposed, restore=given_back, convert=other)


# Versions


def test_a_version_that_does_not_cover_its_values(op: Any) -> None:
    factors = torch.ones(12)
    assert "its function captures factors, a value that its version does not cover" in said(
        op, lambda x, weight: x @ weight.t() * factors
    )
    op.runner("mine", version="7")(lambda x, weight: x @ weight.t() * factors)
    assert check_runner(op, "mine", [KEY])


def test_a_version_that_does_not_cover_its_code(op: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "elsewhere.py").write_text("def pack(weight):\n    return weight.t().contiguous()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = load_file(tmp_path / "elsewhere.py")
    monkeypatch.delitem(sys.modules, module.__name__)
    text = said(op, on_transposed, prepare=module.pack)
    assert "its prepare is in elsewhere.py, which its version does not cover" in text
    assert "sources=" in text
    op.runner("mine", prepare=module.pack, sources=[tmp_path / "elsewhere.py"])(on_transposed)
    assert check_runner(op, "mine", [KEY])


def test_a_version_without_its_source(op: Any) -> None:
    assert "its version cannot be computed: OpError: " in said(op, right, sources=["missing.c"])


# Parameters of a test


def test_cases_are_the_op_and_each_runner_on_each_problem(op: Any) -> None:
    op.runner("good")(right)
    op.runner("bad")(lambda x, weight: x @ weight.t() + 1)
    other = (torch.randn(3, 16), torch.randn(12, 16))
    cases = cases_of(op, [KEY, other])
    assert [str(case) for case in cases] == [
        *(KEY, f"good-{KEY}", f"bad-{KEY}"),
        *("contract::project(…)", "good-contract::project(…)", "bad-contract::project(…)"),
    ]
    for case in cases:
        if case.runner == "bad":
            with pytest.raises(ContractError, match="runner bad of op"):
                case.check()
        else:
            case.check()
    assert cases_of(op, [KEY], runners=["good"]) == [Case(op, KEY), Case(op, KEY, "good")]
