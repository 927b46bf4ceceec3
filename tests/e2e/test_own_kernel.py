"""A developer's own kernel: raced on a warm cache against the incumbent and the default alone, noticed when it is edited."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine import ModelRunner, TuneReport, requests
from tunebook.records import Rejected, Tactic, Timed
from tunebook.store import read_run
from tunebook.tuner import Selection

EXAMPLES = Path(__file__).parents[2] / "examples"
PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "20")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

MINE = '''
"""A kernel of the user's: right, and slow enough to lose for certain."""
import time

import tunebook as tb

PAUSE = 0.01


@tb.kernels.experts.runner("mine", space={"tile": (1, 2)}, sources=("mine.c",))
def mine(x, index, scores, gate_up, down, activation, *, tile):
    if tile == 2:
        raise RuntimeError("tiles of two are not implemented")
    time.sleep(PAUSE)
    return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)
'''


@pytest.fixture(scope="module")
def warm(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache in which the experts are settled, and the document of that tuning."""
    home = tmp_path_factory.mktemp("warm") / "home"
    done = cli(home, *TUNE, "--op", "experts", "--only-runner", "torch", "--json")
    return home, json.loads(done.stdout)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "mine.c").write_text("/* nothing is compiled here; it is a source all the same */\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def trials(document: dict[str, Any]) -> dict[str, dict[str, Timed | Rejected]]:
    """The trials of a run by problem and tactic."""
    found: dict[str, dict[str, Timed | Rejected]] = {}
    for line in read_run(document["run"]).trials:
        found.setdefault(line.problem, {})[line.trial.tactic] = line.trial
    return found


def test_a_kernel_given_with_with_from_its_first_race_to_its_removal(
    warm: tuple[Path, dict[str, Any]], kernel: Path, tmp_path: Path, cli: Cli
) -> None:
    home = tmp_path / "home"
    shutil.copytree(warm[0], home)
    narrow = ("--op", "experts", "--only-runner", "torch", "--only-runner", "mine")
    base = json.loads(Path(warm[1]["cache"]).read_text())["verdicts"]
    assert [key.rpartition("M≤")[2] for key in sorted(base)] == ["1", "2"]

    done = cli(home, *TUNE, *narrow, "--with", kernel)
    run = re.search(r"^run: +(.+)$", done.stdout, re.MULTILINE)
    assert run is not None
    raced = trials({"run": run[1]})
    assert raced.keys() == base.keys(), "something else was tuned again"
    for key, tactics in raced.items():
        assert tactics.keys() == {"default", base[key]["winner"], "mine[tile=1]", "mine[tile=2]"}
        assert isinstance(tactics["mine[tile=1]"], Timed)
        refused = tactics["mine[tile=2]"]
        assert isinstance(refused, Rejected)
        assert (refused.reason, "tiles of two" in refused.detail) == ("runtime", True)
    table = done.stdout[done.stdout.index("Runner mine of op experts") :].splitlines()
    for key in base:
        line = next(line for line in table if line.startswith(key))
        assert " lost " in line
        assert "mine[tile=1]" in line
        assert re.search(r"\d+\.\d\d× \[", line)
    assert re.search(r"^mine serves 0 of \d+ problems", done.stdout, re.MULTILINE)

    again = json.loads(cli(home, *TUNE, *narrow, "--with", kernel, "--json").stdout)
    assert (again["problems"]["tuned"], again["run"]) == (0, None), "the same kernel is raced twice"

    (kernel.parent / "mine.c").write_text("/* edited */\n")
    edited = json.loads(cli(home, *TUNE, *narrow, "--with", kernel, "--json").stdout)
    assert edited["problems"]["tuned"] == len(base), "an edit of a source it names was not noticed"
    assert any("runner mine is" in miss for miss in edited["misses"]), edited["misses"]
    assert trials(edited).keys() == base.keys()

    kernel.write_text(MINE.replace("0.01", "0.011"))
    edited = json.loads(cli(home, *TUNE, *narrow, "--with", kernel, "--json").stdout)
    assert edited["problems"]["tuned"] == len(base), "an edit of the file itself was not noticed"

    without = json.loads(cli(home, *TUNE, "--op", "experts", "--only-runner", "torch", "--json").stdout)
    assert (without["problems"]["tuned"], without["run"]) == (0, None)
    assert not any("mine" in name for name in without["plan"]["tactics"].values())


def test_a_kernel_that_is_wrong_everywhere_is_reported_as_rejected_and_never_serves(
    warm: tuple[Path, dict[str, Any]], tmp_path: Path, cli: Cli
) -> None:
    home = tmp_path / "home"
    shutil.copytree(warm[0], home)
    path = tmp_path / "wrong.py"
    path.write_text(
        "import tunebook as tb\n@tb.kernels.experts.runner('wrong')\ndef wrong(x, *others):\n    return x * 0\n"
    )
    done = cli(home, *TUNE, "--op", "experts", "--only-runner", "wrong", "--with", path)
    table = done.stdout[done.stdout.index("Runner wrong of op experts") :]
    assert table.count(" rejected ") == 2
    assert "correctness" in table
    assert "wrong serves 0 of" in table


def test_the_example_in_c_races_and_reports(tmp_path: Path, cli: Cli) -> None:
    home = tmp_path / "home"
    done = cli(
        home,
        *TUNE,
        "--prefill",
        "",
        "--op",
        "linear",
        "--only-runner",
        "my_linear",
        "--with",
        EXAMPLES / "my_linear.py",
    )
    run = re.search(r"^run: +(.+)$", done.stdout, re.MULTILINE)
    assert run is not None
    raced = trials({"run": run[1]})
    assert raced
    for key, tactics in raced.items():
        assert key.startswith("linear|")
        assert {name.partition("[")[0] for name in tactics} == {"default", "my_linear"}
        assert len(tactics) == 7
        assert all(isinstance(trial, Timed) for trial in tactics.values()), tactics
    table = done.stdout[done.stdout.index("Runner my_linear of op linear") :]
    assert sum(f"\n{key} " in table for key in raced) == len(raced)
    assert re.search(r"^my_linear serves \d+ of \d+ problems", done.stdout, re.MULTILINE)

    doctor = json.loads(cli(home, "doctor", "--json").stdout)
    assert not any(r["runner"] == "my_linear" for r in doctor["runners"]), "a kernel of one session stays"


class Engine:
    """Starts of an engine on a model whose own experts are slow, so that who wins is certain."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.calls: list[str] = []

    def add(self, name: str, pause: float, version: str = "1") -> None:
        def run(x: Any, index: Any, scores: Any, gate_up: Any, down: Any, activation: str) -> Any:
            self.calls.append(name)
            time.sleep(pause)
            return tb.kernels.experts.function(x, index, scores, gate_up, down, activation)

        tb.kernels.experts.runner(name, version=version)(run)

    def start(self, *runners: str) -> tuple[TuneReport, set[str]]:
        """The report, and which of the runners here served a forward pass afterwards."""
        runner = ModelRunner(self.make())
        report = runner.autotune(
            budget_s=30, wanted=requests((1,), (2,)), selection=Selection(ops=("experts",), runners=runners)
        )
        self.calls.clear()
        with torch.inference_mode():
            runner.loaded.model(torch.arange(2).reshape(1, 2))
        return report, set(self.calls)


@pytest.fixture
def engine(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, clean_ops: None) -> Engine:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    original = MixtralExperts.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.03)
        return original(*args, **kwargs)

    monkeypatch.setattr(MixtralExperts, "forward", slow)
    return Engine(tiny_model)


def winners(report: TuneReport) -> set[str]:
    return {tactic.runner for key, tactic in report.outcome.tactics.items() if key.startswith("experts|")}


def test_a_new_kernel_that_wins_serves_and_without_it_the_former_winner_serves_again(engine: Engine) -> None:
    engine.add("former", 0.008)
    report, served = engine.start("former")
    assert (winners(report), served) == ({"former"}, {"former"})
    assert report.plan is not None
    assert report.plan.overall is not None
    assert report.plan.overall.outcome == "faster"

    engine.add("newer", 0.0)
    report, served = engine.start("former", "newer")
    assert report.outcome.tuned == 2
    assert report.session.run_path is not None
    assert {t.trial.tactic for t in read_run(report.session.run_path).trials} == {"default", "former", "newer"}
    assert (winners(report), served) == ({"newer"}, {"newer"})
    cache = report.session.location.cache
    verdicts = json.loads(cache.read_text())["verdicts"]

    tb.kernels.experts.remove_runner("newer")
    report, served = engine.start("former")
    assert (report.outcome.tuned, report.session.run_path) == (0, None)
    assert (winners(report), served) == ({"former"}, {"former"})
    assert json.loads(cache.read_text())["verdicts"] == verdicts, "what is known of the absent kernel is kept"

    engine.add("newer", 0.0)
    report, served = engine.start("former", "newer")
    assert (report.outcome.tuned, winners(report), served) == (0, {"newer"}, {"newer"})


def test_a_changed_kernel_races_the_incumbent_and_the_default_alone(engine: Engine) -> None:
    engine.add("former", 0.008)
    engine.add("mine", 0.015)
    engine.add("other", 0.02)
    report, served = engine.start("former", "mine", "other")
    assert served == {"former"}

    engine.add("mine", 0.0, version="2")
    report, served = engine.start("former", "mine", "other")
    assert report.session.run_path is not None
    assert {t.trial.tactic for t in read_run(report.session.run_path).trials} == {"default", "former", "mine"}
    assert (winners(report), served) == ({"mine"}, {"mine"})

    engine.add("mine", 0.012, version="3")  # the winner itself gets worse: not served unchecked, and loses
    report, served = engine.start("former", "mine", "other")
    assert report.session.run_path is not None
    assert {t.trial.tactic for t in read_run(report.session.run_path).trials} == {"default", "former", "mine"}
    assert (winners(report), served) == ({"former"}, {"former"})
    frontier = next(iter(report.outcome.verdicts.values())).frontier
    ratios = {Tactic.parse(member.tactic).runner: member.ratio for member in frontier}
    assert ratios.keys() == {"former", "mine", "other", "default"}
    assert ratios["former"] == 1 < ratios["mine"] < ratios["other"] < ratios["default"]


def test_a_kernel_that_does_not_race_is_not_served_unchecked(engine: Engine) -> None:
    engine.add("former", 0.008)
    engine.add("mine", 0.0)
    assert engine.start("former", "mine")[1] == {"mine"}
    engine.add("mine", 0.0, version="2")
    report, served = engine.start("former")  # --only-runner former: mine is changed, and may not race
    assert report.outcome.tuned == 0
    assert served == {"former"}
