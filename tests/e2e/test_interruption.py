"""Signals sent to a real `tunebook tune`: what it leaves, what it says, and how `--resume` goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine import ModelRunner, requests
from tunebook.errors import StoreError, UsageError
from tunebook.store import read_cache, read_run
from tunebook.tuner import Selection

Cli = Callable[..., subprocess.CompletedProcess[str]]
Environment = Callable[..., dict[str, str]]

#: A generous end for what should take a second or two: a process that hangs is a failure, a busy machine is not.
DEADLINE_S = 60.0
PHASES = ("--decode", "1,4", "--prefill", "16")


@contextmanager
def tuning(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that tunes; tests in the background inherit that Ctrl-C is ignored, which is undone."""
    with subprocess.Popen(
        [sys.executable, "-m", "tunebook", "tune", "tiny-moe", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    for _ in range(6000):
        if done() or process.poll() is not None:
            return
        time.sleep(0.02)


@dataclass
class Ended:
    home: Path
    code: int
    out: str
    err: str
    run: Path


@pytest.fixture(scope="module")
def terminated(cli_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A fresh tuning that is sent SIGTERM some samples after its first verdict."""
    home = tmp_path_factory.mktemp("terminated") / "home"

    def samples() -> bool:
        found = next(home.glob("autotune/*/runs/*.jsonl"), None)
        return found is not None and b'"type":"sample"' in found.read_bytes().partition(b'"type":"verdict"')[2]

    arguments = ("--fresh", *PHASES, "--budget", "20", "--isolate", "never", "--note", "the first")
    with tuning(cli_environment(home), *arguments) as process:
        until(process, samples)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE_S)
        (run,) = home.glob("autotune/*/runs/*.jsonl")
    return Ended(home, process.returncode, out, err, run)


def test_sigterm_ends_a_tuning_in_order_and_says_how_to_go_on(terminated: Ended) -> None:
    assert terminated.code == 143
    assert "Traceback" not in terminated.err
    assert terminated.out == ""
    last = terminated.err.splitlines()[-1]
    command = f"tunebook tune --resume {shlex.quote(str(terminated.run))}"
    assert last == f"tunebook: terminated; what was measured is kept; go on with: {command}"
    run = read_run(terminated.run)
    assert run.verdicts
    assert (run.footer, run.torn, run.misses) == (None, False, ())
    assert not list(terminated.home.glob("autotune/*/winners.json")), "a fresh tuning leaves the cache alone"


@pytest.mark.parametrize(
    ("option", "then"),
    [
        (("--decode", "2"), "1,4"),
        (("--budget", "7"), "20.0"),
        (("--note", "the second"), "the first"),
        (("--thorough",), "nothing"),
        (("--op", "linear"), "nothing"),
        (("--cache", "other.json"), "winners.json"),
        (("--isolate", "always"), "never"),
        (("--replay",), "nothing"),
        (("--with", "other.py"), "no --with"),
        (("smollm2-moe",), "tiny-moe"),
    ],
)
def test_an_option_that_contradicts_the_run_is_refused_by_name(
    terminated: Ended, cli_inside: Cli, complaint: Callable[..., str], option: tuple[str, ...], then: str
) -> None:
    before = terminated.run.read_bytes()
    done = cli_inside(terminated.home, "tune", *option, "--resume", terminated.run, code=2)
    text = complaint(done)
    named = {"--with": "no --with"}.get(option[0], option[0])
    assert ("MODEL" if len(option) == 1 and not option[0].startswith("--") else named) in text
    assert f"begun with {then}" in text or then in text
    assert terminated.run.read_bytes() == before


def test_another_environment_is_named(
    terminated: Ended, cli_inside: Cli, complaint: Callable[..., str], tmp_path: Path
) -> None:
    header, _, rest = terminated.run.read_text().partition("\n")
    changed = json.loads(header)
    changed["environment"]["hard"]["isa"] = "abacus"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(changed) + "\n" + rest)
    text = complaint(cli_inside(terminated.home, "tune", "--resume", other, code=1))
    assert "another environment (isa: abacus ≠ " in text


def test_another_model_is_named(
    terminated: Ended, cli_inside: Cli, complaint: Callable[..., str], tmp_path: Path
) -> None:
    header, _, rest = terminated.run.read_text().partition("\n")
    changed = {**json.loads(header), "fingerprint": "0123456789abcdef"}
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(changed) + "\n" + rest)
    text = complaint(cli_inside(terminated.home, "tune", "--resume", other, code=1))
    assert "this run tuned tiny-moe (fingerprint 0123456789abcdef), which is not tiny-moe" in text


def test_what_is_no_run_is_refused(cli_inside: Cli, complaint: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no such file" in complaint(
        cli_inside(tmp_path, "tune", "--resume", tmp_path / "none.jsonl", code=1)
    )


def test_a_run_that_tuned_no_model_is_resumed_in_python(
    cli_inside: Cli, complaint: Callable[..., str], demo: Any, tmp_path: Path
) -> None:
    path = demo.op().tune(policy="fresh").run
    assert "give resume=" in complaint(cli_inside(tmp_path, "tune", "--resume", path, code=1))


def test_resuming_keeps_what_was_settled_and_repeats_no_sample(terminated: Ended, cli_inside: Cli) -> None:
    before = read_run(terminated.run)
    settled = {key for key, known in before.problems.items() if known.verdict is not None and not known.open}
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    document = json.loads(cli_inside(terminated.home, "tune", "--resume", terminated.run, "--json").stdout)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert document["run"] == str(terminated.run)
    assert document["policy"] == "fresh"
    assert document["problems"]["cached"] == 0
    assert document["problems"]["resumed"] >= len(settled), "an open race that the budget does not reach stays as it is"
    after = read_run(terminated.run)
    assert after.footer is not None
    assert (len(after.resumed), after.misses) == (1, ())
    assert {key: after.verdicts[key] for key in settled} == {key: before.verdicts[key] for key in settled}
    assert {phase["phase"] for phase in document["phases"]} == {"decode", "prefill"}
    lines = [json.loads(line) for line in terminated.run.read_text().splitlines()]
    samples = Counter((line["race"], line["round"], line["tactic"]) for line in lines if line["type"] == "sample")
    assert max(samples.values()) == 1
    passed = Counter((line["problem"], line["tactic"]) for line in lines if line["type"] == "passed")
    assert max(passed.values()) == 1, "a tactic was checked twice"
    refused = Counter((line["problem"], line["trial"]["tactic"]) for line in lines if line["type"] == "trial")
    assert max(refused.values(), default=1) == 1, "a tactic was rejected twice"
    assert not list(terminated.home.glob("autotune/*/winners.json"))


def test_ctrl_c_while_the_model_loads(cli_environment: Environment, tmp_path: Path) -> None:
    with tuning(cli_environment(tmp_path / "home"), *PHASES) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "tunebook: making random weights\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    last = err.splitlines()[-1]
    run = next((tmp_path / "home").glob("autotune/*/runs/*.jsonl"), None)
    kept = "no tuning was begun" if run is None else f"go on with: tunebook tune --resume {run}"
    assert last.startswith("tunebook: interrupted; ")
    assert kept in last


STUBBORN = '''
"""A tactic that goes on for a minute when it is interrupted."""
import time
from pathlib import Path

from tunebook.kernels import linear

@linear.runner("stubborn", version="1")
def stubborn(x, weight, bias):
    Path(__file__).with_name("begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(__file__).with_name("heard").touch()
        time.sleep(60)
        raise
'''


def test_a_second_ctrl_c_stops_at_once_and_files_stay_readable(cli_environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    arguments = ("--with", str(tmp_path / "stubborn.py"), "--only-runner", "stubborn", "--op", "linear")
    with tuning(cli_environment(tmp_path / "home"), *arguments, *PHASES, "--isolate", "never") as process:
        until(process, (tmp_path / "begun").exists)
        process.send_signal(signal.SIGINT)
        until(process, (tmp_path / "heard").exists)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert time.monotonic() - started < 50, "it waited for the tactic"
    assert process.returncode == 130, err
    assert (tmp_path / "heard").exists(), err
    (path,) = (tmp_path / "home").glob("autotune/*/runs/*.jsonl")
    run = read_run(path)
    assert run.misses == ()
    assert run.problems


class Interrupting(Counter[str]):
    """Counts calls; the twentieth of `quick` gets Ctrl-C."""

    def __setitem__(self, name: str, count: int) -> None:
        super().__setitem__(name, count)
        if name == "quick" and count == 20:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_a_block_keeps_what_was_reached_and_the_block_goes_on(demo: Any, restart: Callable[[], None]) -> None:
    scale = demo.op()
    scale.calls = Interrupting()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            scale.tune(rows=8)
    finally:
        signal.signal(signal.SIGINT, before)
    (path,) = demo.runs()
    assert caught.value.__notes__ == [f"go on with: tunebook.autotune(resume={str(path)!r})"]
    first = {key: known for key, known in read_run(path).problems.items() if known.verdict and not known.open}
    assert read_run(path).problems
    restart()
    again = demo.op()
    with (
        pytest.raises(UsageError, match=r"budget_s=29.0 contradicts the run .*, which was begun with 30"),
        tb.autotune(resume=path, budget_s=29.0),
    ):
        pass
    outcome = again.tune(rows=8, resume=path).outcome
    assert (outcome.resumed, outcome.tuned) == (len(first), 4 - len(first))
    assert set(demo.verdicts()) == {demo.key(rows) for rows in (1, 2, 4, 8)}
    assert again(8) == "quick"
    assert demo.runs() == [path]
    with pytest.raises(StoreError, match="ended by itself"):
        again.tune(rows=8, resume=path)


def test_an_interruption_of_the_proof_leaves_the_plan_unverified(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """What serves next time is known, and that it was not compared with the default; resuming compares it."""

    def progress(done: int, total: int, what: str) -> None:
        if what == "verifying":
            raise KeyboardInterrupt

    wanted = requests((1,), ())
    cache = tmp_path / "cache.json"
    asked: dict[str, Any] = {"cache": cache, "wanted": wanted, "selection": Selection(runners=("torch",))}
    with ModelRunner(tiny_model("mixtral"), threads=1, ops=("experts",)) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.autotune(**asked, budget_s=300.0, seed=1, isolate="never", progress=progress)
        (path,) = (tmp_path / "runs").glob("*.jsonl")
        plans = [*read_run(path).plans.values()]
        assert set(plans[0].tactics.values()) != {"default"}, "there is nothing to compare"
        assert [plan.verified for plan in plans] == [False]
        assert [plan.verified for plan in read_cache(cache, runner.device.environment()).plans.values()] == [False]
        needed, why = runner.should_autotune(cache=cache, wanted=wanted)
        assert needed
        assert "was not compared" in why
        with pytest.raises(UsageError, match="seed=2 contradicts the run"):
            runner.autotune(resume=path, seed=2)
        report = runner.autotune(resume=path)
        assert report.plan is not None
        assert report.outcome.resumed + report.outcome.tuned + report.outcome.left_out == report.outcome.seen
        assert report.outcome.resumed > 0
        assert report.plan.verified
        assert read_run(path).footer is not None
        assert not runner.autotune(**asked).tuned
        assert [*(tmp_path / "runs").glob("*.jsonl")] == [path], "the next start begins no tuning"


def test_show_tells_samples_of_a_race_that_was_given_up(demo: Any, cli_inside: Cli, tmp_path: Path) -> None:
    """A tactic that fails in its race makes another race begin; what was sampled before is shown as such."""
    scale, calls = demo.op(), 0

    def late(x: torch.Tensor, s: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("illegal instruction")
        return x * s

    scale.op.runner("late", version="1")(late)
    path = scale.tune(rows=1, policy="fresh", isolate="never").run
    assert {line.race for line in read_run(path).trials if line.race} == {1, 2}
    shown = cli_inside(tmp_path, "show", path, "--problem", demo.key(1)).stdout
    rows = [line for line in shown.splitlines() if "in a race that was given up" in line]
    assert [line.split()[0] for line in rows if not line.startswith("late")]
    assert len(rows) >= 2
    facts = json.loads(cli_inside(tmp_path, "show", path, "--json").stdout)
    assert (facts["complete"], facts["resumed"]) == (True, 0)
