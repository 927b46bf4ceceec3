"""What tactics are checked on: a bucket's edges, a ragged size, and the extremes that an op declares."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tunebook as tb
from tunebook.devices import CpuDevice
from tunebook.dispatch import Binding, Op, Scope, collecting
from tunebook.errors import OpError
from tunebook.kernels import experts
from tunebook.measure import Case, Finding, Passed, Reference, check
from tunebook.records import Tactic
from tunebook.tuner import Collection, Task, tasks

pytestmark = pytest.mark.usefixtures("clean_ops")

E, K, H, INNER = 6, 2, 16, 8


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def routed(tokens: int, dtype: torch.dtype = torch.float32, experts: int = E, choices: int = K) -> tuple[Tensor, ...]:
    """A token's input, experts and scores, as a router gives them: every expert has tokens where there are enough."""
    rng = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, H, generator=rng).to(dtype)
    logits = torch.randn(tokens, experts, generator=rng)
    logits[torch.arange(tokens), torch.arange(tokens) % experts] += 20
    scores, index = logits.softmax(-1).topk(choices)
    return x, index, scores.to(dtype)


def weights(dtype: torch.dtype = torch.float32, experts: int = E) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    gate_up = torch.randn(experts, 2 * INNER, H, generator=rng) / H**0.5
    return gate_up.to(dtype), (torch.randn(experts, H, INNER, generator=rng) / INNER**0.5).to(dtype)


def task_of(binding: Binding, *args: Any) -> Task:
    """The task of the bucket that this call falls into."""
    collection = Collection(CpuDevice())
    call = binding.caller()
    with collecting(collection):
        call(*args)
    return next(task for task in tasks(collection) if task.seen)


def bound(dtype: torch.dtype = torch.float32, **options: Any) -> Binding:
    return experts.bind(*weights(dtype), "silu", **options)


def checked(binding: Binding, task: Task, tactic: Tactic) -> Finding | Passed:
    cases = task.cases(random.Random(0), binding, CpuDevice())
    return check(binding.bound(tactic), Reference.of(cases, binding.constants), CpuDevice())


def extremes(cases: Sequence[Case]) -> dict[str, Case]:
    return {case.label: case for case in cases if not case.label.rpartition("M=")[2].isdigit()}


def test_the_cases_are_the_edges_one_between_and_the_extremes_and_the_upper_edge_comes_last() -> None:
    binding = bound()
    task = task_of(binding, *routed(9))
    cases = task.cases(random.Random(0), binding, CpuDevice())
    assert {case.label for case in cases} - extremes(cases).keys() == {"M=9", "M=12", "M=16"}
    assert cases[-1].label == "M=16", "its call is the first look at the speed"
    assert all(label.startswith("M=16, ") for label in extremes(cases))
    for case in cases:
        assert torch.equal(case.expected, experts.function(*case.args, *binding.constants))


def test_the_extremes_of_experts_are_the_routings_that_a_live_batch_seldom_shows() -> None:
    binding = bound()
    task = task_of(binding, *routed(16))
    found = extremes(task.cases(random.Random(0), binding, CpuDevice())).values()
    counts = [torch.bincount(case.args[1].flatten(), minlength=E + 1).tolist() for case in found]
    assert all(sum(count) == 16 * K for count in counts)
    assert any(max(count[:E]) == 16 * K for count in counts), "one expert has everything"
    assert any(sorted(count) == [0] * (E + 1 - K) + [16] * K and not count[E] for count in counts), "most have nothing"
    assert any(0 < count[E] < 16 * K for count in counts), "some choices have no expert"
    assert any(count[E] == 16 * K for count in counts), "no choice has one"
    for case in found:
        assert [value.shape for value in case.args] == [(16, H), (16, K), (16, K)]


def test_an_extreme_that_cannot_be_is_left_out() -> None:
    """With as many choices as experts no expert can be idle while tokens choose different ones."""
    gate_up, down = weights(experts=2)
    binding = experts.bind(gate_up, down, "silu")
    task = task_of(binding, *routed(4, experts=2))
    assert not any("idle" in label for label in extremes(task.cases(random.Random(0), binding, CpuDevice())))


@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("scores", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_shipped_tactic_is_right_on_all_cases(dtype: torch.dtype, scores: torch.dtype, tokens: int) -> None:
    binding = bound(dtype)
    x, index, weight = routed(tokens, dtype)
    task = task_of(binding, x, index, weight.to(scores))
    reference = Reference.of(task.cases(random.Random(0), binding, CpuDevice()), binding.constants)
    assert len(extremes(reference.cases)) == 4
    found = {}
    for runner in experts.runners.values():
        if runner.requirement.reason() is None:
            for tactic in runner.combinations:
                if runner.refusal(tactic, task.problem) is None:
                    found[tactic.name] = check(binding.bound(tactic), reference, CpuDevice())
    assert len(found) >= 8
    assert {name: passed for name, passed in found.items() if isinstance(passed, Finding)} == {}


Kernel = Callable[..., Tensor]


def all_in_one(x: Tensor, index: Tensor, scores: Tensor, *constants: Any) -> Tensor:
    """Its buffer for one expert's pairs holds twice the average."""
    pairs = torch.bincount(index.flatten(), minlength=E + 1)[:E].max()
    out = experts.function(x, index, scores, *constants)
    return out * 0.9 if pairs >= len(x) * K else out


def empty_between(x: Tensor, index: Tensor, scores: Tensor, *constants: Any) -> Tensor:
    """Where several experts have tokens, takes those of one behind an idle one for the idle one's."""
    present = torch.bincount(index.flatten(), minlength=E + 1)[:E] > 0
    wrong = index.clone()
    for expert in range(1, E):
        if present.sum() > 1 and present[expert] and not present[expert - 1]:
            wrong[index == expert] = expert - 1
    return experts.function(x, wrong, scores, *constants)


def all_dropped(x: Tensor, index: Tensor, scores: Tensor, *constants: Any) -> Tensor:
    if bool((index == E).all()):
        return torch.full_like(x, 1e-3)
    return experts.function(x, index, scores, *constants)


def dropped_is_last(x: Tensor, index: Tensor, scores: Tensor, *constants: Any) -> Tensor:
    """Clamps an index that is no expert, as if its score were zero."""
    return experts.function(x, index.clamp(max=E - 1), scores, *constants)


def dropped_crashes(x: Tensor, index: Tensor, scores: Tensor, *constants: Any) -> Tensor:
    if int(index.max()) >= E:
        raise IndexError(f"index {E} is out of bounds")
    return experts.function(x, index, scores, *constants)


@pytest.mark.parametrize(
    ("kernel", "reason", "named"),
    [
        (all_in_one, "correctness", "every choice is expert"),
        (empty_between, "correctness", "idle"),
        (all_dropped, "correctness", "no choice has an expert"),
        (dropped_is_last, "correctness", "half of the choices have no expert"),
        (dropped_crashes, "runtime", "half of the choices have no expert"),
    ],
    ids=["all in one", "empty between", "all dropped", "dropped is the last", "dropped crashes"],
)
def test_a_tactic_that_is_wrong_only_there_is_refused_with_the_case_named(
    kernel: Kernel, reason: str, named: str
) -> None:
    experts.runner("careless", version="1")(kernel)
    binding = bound()
    task = task_of(binding, *routed(16))
    live = Reference.of(
        [case for case in task.cases(random.Random(0), binding, CpuDevice()) if case.label == "M=16"], ()
    )
    assert isinstance(check(binding.bound(Tactic(runner="careless")), live, CpuDevice()), Passed)
    found = checked(binding, task, Tactic(runner="careless"))
    assert isinstance(found, Finding)
    assert (found.reason, named in found.detail, found.detail.startswith("M=16, ")) == (reason, True, True), found


def test_a_careless_kernel_does_not_win_a_tuning(caplog: pytest.LogCaptureFixture) -> None:
    experts.runner("careless", version="1")(all_in_one)
    x, index, scores = routed(16)
    with tb.autotune(only_runners=("careless",), budget_s=20) as tuning:
        experts(x, index, scores, *weights(), "silu")
    assert tuning.outcome is not None
    (verdict,) = [verdict for key, verdict in tuning.outcome.verdicts.items() if key.endswith("M≤16")]
    assert verdict.winner == "default"
    (rejected,) = verdict.rejected
    assert (rejected.tactic, rejected.reason) == ("careless", "correctness")
    assert "every choice is expert" in rejected.detail


@pytest.mark.parametrize("covers", ["raises", "leaves garbage"])
def test_an_extreme_that_the_default_does_not_cover_is_left_out_and_said(
    covers: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A model's own module may know no choice without an expert; what it makes of one is no reference."""
    constants = (*weights(), "silu")

    def module(x: Tensor, index: Tensor, scores: Tensor) -> Tensor:
        if covers == "raises":
            return dropped_crashes(x, index, scores, *constants)
        return dropped_is_last(x, index, scores, *constants)

    binding = experts.bind(*constants, default=module, scope=Scope("a model"))
    task = task_of(binding, *routed(16))
    with caplog.at_level(logging.DEBUG, "tunebook.tuner"):
        found = extremes(task.cases(random.Random(0), binding, CpuDevice()))
    assert len(found) == 2
    assert not any("no expert" in label or "no choice" in label for label in found)
    said = [record.getMessage() for record in caplog.records if "not checked on" in record.getMessage()]
    assert len(said) == 2
    assert all(task.problem.key in line for line in said)
    assert ("IndexError" in said[0]) == (covers == "raises")


def test_a_default_that_fails_at_an_edge_raises() -> None:
    """It is the model's own fault, not an extreme's."""

    def module(x: Tensor, index: Tensor, scores: Tensor) -> Tensor:
        if len(x) == 9:
            raise RuntimeError("nine")
        return experts.function(x, index, scores, *binding.constants)

    binding = bound(default=module)
    task = task_of(binding, *routed(16))
    with pytest.raises(RuntimeError, match="nine"):
        task.cases(random.Random(0), binding, CpuDevice())


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_a_models_own_experts_are_a_reference_for_routings_with_experts(
    tiny_model: Callable[..., Any], architecture: str, implementation: str
) -> None:
    model = tiny_model(architecture, "bfloat16").model
    model.set_experts_implementation(implementation)
    with tb.attach(model, ops=("experts",)):
        collection = Collection(CpuDevice())
        with collecting(collection):
            model(input_ids=torch.arange(7)[None])
        (task,) = [task for task in tasks(collection) if task.seen]
        found = task.cases(random.Random(0), task.family.layers[0], CpuDevice())
    assert len([label for label in extremes(found) if "every choice" in label or "idle" in label]) == 2


# ------------------------------------------------------------------------------------------------------- declarations


def halved(made: Callable[..., Any] | None) -> Op[Any, Any]:
    @tb.op("halved", constants=("by",), extremes=made)
    def op(x: Tensor, by: Tensor) -> Tensor:
        return x / by

    return op


def halved_task(made: Callable[..., Any] | None) -> tuple[Task, Binding]:
    binding = halved(made).bind(torch.full((3,), 2.0))
    return task_of(binding, torch.ones(4, 3)), binding


def test_an_op_may_declare_extremes_of_its_own() -> None:
    seen: list[tuple[Any, ...]] = []

    def made(args: Sequence[Any], rng: random.Random) -> Iterator[tuple[str, tuple[Tensor]]]:
        seen.append(tuple(args))
        yield "all zero", (torch.zeros_like(args[0]),)
        yield "one infinite", (args[0].index_fill(0, torch.tensor([rng.randrange(4)]), float("inf")),)

    task, binding = halved_task(made)
    labels = [case.label for case in task.cases(random.Random(0), binding, CpuDevice())]
    assert labels == ["x.0=3", "x.0=4, all zero", "x.0=4, one infinite", "x.0=4"]
    (args,) = seen
    assert len(args) == 2, "constants included"
    assert torch.equal(args[1], torch.full((3,), 2.0))


def test_an_op_without_extremes_is_checked_on_sizes_alone() -> None:
    task, binding = halved_task(None)
    assert [case.label for case in task.cases(random.Random(0), binding, CpuDevice())] == ["x.0=3", "x.0=4"]


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda args, rng: [("too long", (torch.ones(9, 3),))], "x.0≤16"),
        (lambda args, rng: [("too wide", (torch.ones(4, 5),))], "x.1=5"),
        (lambda args, rng: [("constants, too", (args[0], args[1]))], "constants, too"),
        (lambda args, rng: [("none", ())], "failed"),
        (lambda args, rng: 1 / 0, "division by zero"),
        (lambda args: [], "positional argument"),
    ],
)
def test_extremes_that_are_no_calls_of_the_problem_are_an_error_of_the_op(made: Callable[..., Any], named: str) -> None:
    task, binding = halved_task(made)
    with pytest.raises(OpError, match=r"halved.*extremes") as caught:
        task.cases(random.Random(0), binding, CpuDevice())
    assert named in str(caught.value)


def test_extremes_that_are_no_function_are_an_error() -> None:
    with pytest.raises(OpError, match=r"extremes=\['all zero'\]"):
        tb.op("unfit", extremes=["all zero"])(lambda x: x)  # type: ignore[arg-type]
