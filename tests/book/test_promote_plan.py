"""What becomes of plans when a run is promoted: its own goes in, or one that would serve what is replaced goes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.devices import device_of
from tunebook.dispatch import OPS
from tunebook.engine import ModelRunner, requests
from tunebook.records import Holding, Member, Offered, Overall, Plan, Tactic, Verdict
from tunebook.store import read_cache

pytestmark = pytest.mark.usefixtures("clean_ops")
Cli = Callable[..., Any]
FORMER, NEW = "torch[operand=columns]", "torch_transposed"
FINGERPRINT = "0f3c"


class Model:
    """A cache with a plan for a model, in which FORMER won twice, and runs of the same model in which NEW did."""

    def __init__(self, made: Any, cli: Cli) -> None:
        self.made, self._cli = made, cli
        made.environment = device_of("cpu").environment()
        runners = OPS["linear"].runners
        made.offered = {
            "default": Offered(version="1", space=""),
            **{name: runners[name].offered for name in ("torch", "torch_transposed")},
        }
        self.keys = [made.key(1), made.key(16)]
        made.cache([self.verdict(key, FORMER) for key in self.keys], [self.plan(FORMER), self.plan(FORMER, "other")])
        self.before = made.cache_path.read_bytes()

    def verdict(self, key: str, winner: str, **changes: Any) -> Verdict:
        tactic = Tactic.parse(winner)
        layout = OPS["linear"].runners[tactic.runner].layout_of(tactic)
        members = [Member(tactic=winner, ratio=1.0, low=1.0, high=1.0, layout=layout)]
        members.append(Member(tactic="default", ratio=1.5, low=1.4, high=1.6))
        verdict: Verdict = self.made.verdict(
            key, **{"winner": winner, "frontier": tuple(members), "run": winner, **changes}
        )
        return verdict

    def plan(self, name: str, fingerprint: str = f"{FINGERPRINT}-1a", **changes: Any) -> Plan:
        overall = Overall(speedup=1.2, speedup_low=1.1, speedup_high=1.3)
        fields: dict[str, Any] = {"tactics": dict.fromkeys(self.keys, name), "verified": True, "overall": overall}
        return Plan(**{"model": "a-model", "fingerprint": fingerprint, "requested": ("decode 1",), **fields, **changes})

    def run(self, plan: Plan | None, *, winner: str = NEW, **changes: Any) -> Path:
        verdicts = [self.verdict(key, winner, **changes) for key in self.keys]
        run: Path = self.made.run(verdicts, plan=plan, fingerprint=FINGERPRINT)
        return run

    def promote(self, run: Path, *arguments: str) -> dict[str, Any]:
        done = self._cli(self.made.folder, "promote", run, "--yes", "--json", *arguments)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def roll_back(self) -> dict[str, Any]:
        done = self._cli(self.made.folder, "rollback", "--cache", self.made.cache_path, "--yes", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def told(self, run: Path, *arguments: str) -> str:
        text: str = self._cli(self.made.folder, "promote", run, "--yes", *arguments).stdout
        return text

    @property
    def plans(self) -> dict[str, Plan]:
        return dict(read_cache(self.made.cache_path, None).plans)


@pytest.fixture
def model(made: Any, cli_inside: Cli) -> Model:
    return Model(made, cli_inside)


def test_a_verified_plan_goes_in_with_its_verdicts_and_the_former_one_comes_back(model: Model) -> None:
    plan = model.plan(NEW)
    document = model.promote(model.run(plan))
    assert document["plans"] == {"put": [plan.fingerprint], "taken_out": [], "left": {}}
    assert model.plans == {plan.fingerprint: plan, "other": model.plan(FORMER, "other")}
    back = model.roll_back()
    assert back["plans"] == {"restored": [plan.fingerprint], "removed": []}
    assert model.plans == {plan.fingerprint: model.plan(FORMER), "other": model.plan(FORMER, "other")}


def test_a_plan_of_which_the_cache_has_none_goes_out_again(model: Model) -> None:
    plan = model.plan(NEW, "beef-1a")
    model.promote(model.run(plan))
    assert model.plans["beef-1a"] == plan
    assert model.roll_back()["plans"]["removed"] == ["beef-1a"]
    assert "beef-1a" not in model.plans


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verified": False}, "was not compared with the default on the whole model"),
        ({"tactics": {"linear|N=8,K=8|bf16|M≤1": "torch[operand=sideways]"}}, "does not offer this tactic"),
        ({"tactics": {"linear|N=8,K=8|bf16|M≤64": NEW}}, "no verdict on that is promoted"),
        ({"tactics": {"nobody|N=8|bf16|M≤64": "default"}, "holdings": "nobody|N=8|bf16"}, "is not offered"),
    ],
)
def test_a_plan_that_cannot_go_in_leaves_none_that_serves_what_is_replaced(
    model: Model, changes: dict[str, Any], says: str
) -> None:
    if family := changes.get("holdings"):
        changes = {**changes, "holdings": (Holding(family=family, layers=1, layouts={}, source=NEW),)}
    run = model.run(model.plan(NEW, **changes))
    former = model.plan(FORMER)
    told = model.told(run)
    assert "the plan for a-model stays out: " in told
    assert says in told
    assert "the plan for a-model in the cache goes out: it serves what is replaced" in told
    assert set(model.plans) == {"other"}
    model.roll_back()
    assert model.plans[former.fingerprint] == former


def test_with_a_part_of_its_problems_a_plan_stays_out(model: Model) -> None:
    """And the cached one goes: it would go on serving the former winner of the problem that is promoted."""
    plan = model.plan(NEW)
    gone = "torch_transposed[x=1]"
    members = (Member(tactic=gone, ratio=1.0, low=1.0, high=1.0),)
    other = msgspec.structs.replace(model.verdict(model.keys[1], NEW), winner=gone, frontier=members)
    run = model.made.run([model.verdict(model.keys[0], NEW), other], plan=plan, fingerprint=FINGERPRINT)
    document = model.promote(run)
    assert list(document["promoted"]) == [model.keys[0]]
    assert "which is not promoted" in document["plans"]["left"][plan.fingerprint]
    assert document["plans"]["taken_out"] == [plan.fingerprint]


def test_where_no_winner_changes_the_cached_plan_stays(model: Model) -> None:
    """A tuning that was interrupted before it had a plan, with the winners that serve already."""
    document = model.promote(model.run(None, winner=FORMER, speedup=1.7))
    assert set(document["promoted"]) == set(model.keys)
    assert document["plans"] == {"put": [], "taken_out": [], "left": {}}
    assert len(model.plans) == 2


def test_without_a_plan_of_its_own_a_run_takes_its_models_out(model: Model) -> None:
    assert model.promote(model.run(None))["plans"]["taken_out"] == [f"{FINGERPRINT}-1a"]


def test_a_plan_that_was_slower_than_the_default_is_said_to_be(model: Model) -> None:
    plan = model.plan(NEW, active=False)
    told = model.told(model.run(plan))
    assert (
        "note: the plan for a-model was slower than the default on the whole model: with it the default serves" in told
    )
    assert model.plans[plan.fingerprint] == plan


def test_a_plan_alone_can_be_promoted(model: Model) -> None:
    """Its verdicts are in the cache already, in another plan's company."""
    plan = model.plan(FORMER, requested=("decode 1", "prefill 8"))
    run = model.made.run([model.verdict(key, FORMER) for key in model.keys], plan=plan, fingerprint=FINGERPRINT)
    document = model.promote(run)
    assert (document["promoted"], document["plans"]["put"]) == ({}, [plan.fingerprint])
    assert model.plans[plan.fingerprint] == plan
    model.roll_back()
    assert model.plans[plan.fingerprint] == model.plan(FORMER)


def test_show_tells_what_a_plan_serves(model: Model, cli_inside: Cli) -> None:
    active = model.plan("default", reverted={model.keys[0]: FORMER})
    model.made.cache(
        [model.verdict(key, FORMER) for key in model.keys], [active, model.plan(NEW, "slow", active=False)]
    )
    rows = json.loads(cli_inside(model.made.folder, "show", model.made.cache_path, "--json").stdout)["serving"]
    assert {(row["tactic"], row["by"], row["model"]) for row in rows} == {("default", "cache", "a-model")}
    slower = "the plan is slower than the default on the whole model"
    assert sorted((row["problem"], row["why"]) for row in rows) == sorted(
        [(key, slower) for key in model.keys]
        + [(model.keys[0], f"the plan; {FORMER} makes the model slower"), (model.keys[1], "the plan")]
    )
    told = cli_inside(model.made.folder, "show", model.made.cache_path).stdout
    assert "Served by another tactic than the winner, or by a pin" in told


@pytest.mark.slow
def test_a_promoted_run_of_a_model_serves_at_the_next_start_without_measuring(
    tiny_model: Callable[..., Any], tmp_path: Path, cli_inside: Cli
) -> None:
    cache, wanted = tmp_path / "c.json", requests((1,), ())
    with ModelRunner(tiny_model(), threads=1) as runner:
        runner.autotune(cache=cache, budget_s=2.0, wanted=wanted)
        before, plans = cache.read_bytes(), set(read_cache(cache, None).plans)
        report = runner.autotune(cache=cache, policy="fresh", budget_s=4.0, wanted=wanted)
        run = report.session.run_path
        document = json.loads(cli_inside(tmp_path, "promote", run, "--yes", "--json").stdout)
        assert document["promoted"]
        assert document["plans"]["put"] == sorted(plans), document
        assert report.plan is not None
        (plan,) = read_cache(cache, None).plans.values()
        assert plan == msgspec.json.decode(msgspec.json.encode(report.plan), type=Plan)
        needed, why = runner.should_autotune(cache=cache, wanted=wanted)
        assert not needed, why
        assert runner.autotune(cache=cache, budget_s=2.0, wanted=wanted).outcome.fresh == []
        cli_inside(tmp_path, "rollback", "--cache", cache, "--yes")
        assert cache.read_bytes() == before
