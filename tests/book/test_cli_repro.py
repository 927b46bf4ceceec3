"""`tunebook repro`: one trial alone, of runs whose content is known and of ops of the user's own."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunebook.cli._profilers import PIPES, profilers
from tunebook.records import Rejected, Timed

pytestmark = pytest.mark.usefixtures("clean_ops")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
FEW = ("--calls", 3, "--warmup", 1, "--layers", 1)
KEY = "linear|N=8,K=8|bf16|M≤4"
WIDE = "linear|N=48,K=32|fp32|M≤16"

OWN = """
import time
import torch
import tunebook as tb

def example(problem, sizes, seed, *, offset=0.0):
    x = torch.rand(sizes["M"], 3, generator=torch.Generator().manual_seed(seed))
    return x + offset, torch.eye(3)

@tb.op("demo::turn", buckets={"x": {0: tb.pow2(max=64, name="M")}}, constants=("w",), example=example)
def turn(x, w):
    return x @ w

def broken(*args, **params):
    raise ValueError("no\\nway")

turn.runner("right", version="1", prepare=lambda w: w.clone(), layout=lambda: "copied")(lambda x, w: x @ w)
turn.runner("wrong", version="1")(lambda x, w: x @ w + 1)
turn.runner("fails", version="1")(broken)
turn.runner("unprepared", version="1", prepare=broken)(lambda x, w: x @ w)
turned = []

def tires(x, w):
    turned.append(1)
    return x @ w if len(turned) < 3 else broken()

turn.runner("tires", version="1")(tires)
turn.runner("greedy", version="1", workspace=lambda x, w: 1 << 50)(lambda x, w: x @ w)

@tb.op("demo::bare", buckets={"x": {0: tb.pow2(max=64, name="M")}})
def bare(x):
    return x

@tb.op("demo::lost", example=lambda problem, sizes, seed: (torch.zeros(3, 3),))
def lost(x):
    raise RuntimeError("nobody knows")

@tb.op("demo::all", communicates=True, example=lambda problem, sizes, seed: (torch.zeros(4, 3),))
def everybody(x):
    return x

with tb.autotune(budget_s=20):
    turn(torch.ones(4, 3), torch.eye(3))
"""
TURN = "demo::turn|x.1=3,w.0=3,w.1=3|fp32|M≤4"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own kernels.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error, which must be all there is on standard error."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tunebook: error: ")
    return line


def test_a_problem_needs_no_run(tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path / "home", "repro", WIDE, "default", *FEW, "--json")
    document = json.loads(done.stdout)
    assert (document["problem"], document["tactic"], document["device"]) == (WIDE, "default", "cpu")
    assert document["inputs"]["arguments"] == {"x": "fp32[16,32]", "weight": "fp32[48,32]", "bias": "None"}
    assert document["inputs"]["sizes"] == {"M": 16}
    assert (document["layers"], document["weights"]["bytes"]) == (1, 48 * 32 * 4)
    assert (document["measured"]["calls"], document["recorded"]) == (3, None)
    assert document["measured"]["low"] <= document["measured"]["seconds"] <= document["measured"]["high"]
    assert any("there is no run yet" in note for note in document["notes"])
    assert not (tmp_path / "home").exists(), "it leaves something behind"


def test_the_command_that_is_printed_is_this_very_trial(made: Any, cli_inside: Cli) -> None:
    run = made.run([made.verdict(KEY)])
    arguments = ("M≤4", "torch[operand=columns]", "--run", run, *FEW, "--seed", 7, "--set", "M=3", "--json")
    first = json.loads(cli_inside(made.folder, "repro", *arguments).stdout)
    words = shlex.split(first["process"])
    assert words[:6] == [sys.executable, "-m", "tunebook", "repro", KEY, "torch[operand=columns]"]
    again = json.loads(cli_inside(made.folder, *words[3:], "--json").stdout)
    for part in ("problem", "tactic", "inputs", "layers", "weights", "check", "process", "recorded"):
        assert again[part] == first[part]
    assert first["inputs"]["arguments"]["x"] == "bf16[3,8]"
    assert "asked for" in first["inputs"]["of"]


def test_what_the_run_had_measured_stands_beside_it(made: Any, cli_inside: Cli) -> None:
    name = "torch[operand=columns]"
    samples: dict[str, Any] = {"samples": (2e-6, 3e-6, 4e-6), "rounds": (0, 1, 2)}
    trials = [Timed(tactic=name, error=0.5, **samples), Timed(tactic="default", **samples)]
    run = made.run([made.verdict(KEY)], trials={KEY: trials})
    done = cli_inside(made.folder, "repro", KEY, name, "--run", run, *FEW)
    lines = done.stdout.splitlines()
    assert lines[0] == KEY
    assert f"  then:   3 µs [2 µs, 4 µs] a call, 3 samples, {run}" in lines
    assert "          3 µs [2 µs, 4 µs] the default, there too" in lines
    assert any(line.startswith("  now: ") and "3 calls in " in line for line in lines)
    assert any(
        "output: agrees with the default" in line and "came to another result (then 0.5)" in line for line in lines
    )
    assert any("another environment, then ≠ now: device: cpu of a test" in line for line in lines)
    document = json.loads(cli_inside(made.folder, "repro", KEY, name, "--run", run, *FEW, "--json").stdout)
    recorded = {"path": str(run), "model": "a-model", "how": "race", "seconds": 3e-6, "low": 2e-6, "high": 4e-6}
    assert {name: document["recorded"][name] for name in recorded} == recorded
    assert document["check"] == {
        "agrees": True,
        "detail": None,
        "error": pytest.approx(0.0, abs=2e-2),
        "error_then": 0.5,
        "alike": False,
    }


def test_what_was_rejected_then_is_run_all_the_same_and_said(made: Any, cli_inside: Cli) -> None:
    name = "torch[operand=columns]"
    refused = Rejected(tactic=name, reason="correctness", detail="row 1 is off", ran=True)
    run = made.run([made.verdict(KEY)], trials={KEY: [refused]})
    document = json.loads(cli_inside(made.folder, "repro", KEY, name, "--run", run, *FEW, "--json").stdout)
    assert document["recorded"]["rejected"] == {"reason": "correctness", "detail": "row 1 is off"}
    assert (document["check"]["agrees"], document["check"]["alike"]) == (True, False)
    assert any("rejected then (correctness: row 1 is off)" in note for note in document["notes"])


def test_a_tactic_that_did_not_race_stands_beside_the_default_of_the_run(made: Any, cli_inside: Cli) -> None:
    default = Timed(tactic="default", samples=(3e-6,), rounds=(0,))
    run = made.run([], trials={KEY: [default]})
    lines = cli_inside(made.folder, "repro", KEY, "torch[operand=columns]", "--run", run, *FEW).stdout.splitlines()
    assert f"  then:   3 µs the default, {run}" in lines
    assert any(line.startswith(f"  note: {run} tells nothing of this tactic") for line in lines)


def test_a_cache_without_its_run_tells_by_the_verdict_alone(made: Any, cli_inside: Cli) -> None:
    made.cache([made.verdict(KEY, run="")])
    document = json.loads(
        cli_inside(made.folder, "repro", "M≤4", "default", "--run", made.cache_path, *FEW, "--json").stdout
    )
    assert document["recorded"]["how"] == "verdict"
    assert document["recorded"]["seconds"] == pytest.approx(1e-4)
    assert document["recorded"]["path"] == str(made.cache_path)


def test_several_problems_are_listed(made: Any, cli_inside: Cli) -> None:
    keys = [made.key(size) for size in (1, 2, 4)]
    run = made.run([made.verdict(key) for key in keys])
    done = cli_inside(made.folder, "repro", "linear", "default", "--run", run, code=2)
    assert done.stdout.splitlines() == keys
    assert "'linear' is a part of 3 problems" in complaint(done)
    done = cli_inside(made.folder, "repro", "linear", "default", "--run", run, "--json", code=2)
    assert json.loads(done.stdout) == {"problems": keys}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("conv", "default", "--run", "RUN"), 1, ("no problem contains 'conv'", "tunebook show")),
        ((WIDE, "default", "--run", "RUN"), 1, ("no problem contains", WIDE)),
        (("linear", "default"), 1, ("nothing was tuned",)),
        ((KEY, "default", "--run", "no/such.jsonl"), 1, ("no/such.jsonl",)),
        ((KEY, "default", "--run", "latest"), 1, ("nothing was tuned",)),
        (("conv|N=3|fp32|M≤4", "default"), 2, ("op conv is none of", "--with FILE")),
        ((KEY, "nativ"), 2, ("op linear offers no tactic nativ", "near are")),
        ((KEY, "torch[operand=rows]"), 2, ("near are torch[operand=columns]",)),
        (("experts|E=2,K=1,H=4,I=4|bf16|M≤4", "flashinfer"), 2, ("flashinfer of op experts cannot run here",)),
        ((f"{KEY}|captured", "default"), 2, ("'captured'", "CPU")),
        ((KEY, "default", "--calls", "0"), 2, ("--calls 0",)),
        ((KEY, "default", "--warmup", "-1"), 2, ("--warmup -1",)),
        ((KEY, "default", "--layers", "0"), 2, ("--layers 0",)),
        ((KEY, "default", "--seconds", "nan"), 2, ("--seconds nan",)),
        ((KEY, "default", "--seconds", "0"), 2, ("--seconds 0",)),
        ((KEY, "default", "--calls", "1", "--seconds", "1"), 2, ("--calls and --seconds",)),
        ((KEY, "default", "--seed", "-1"), 2, ("--seed -1",)),
        ((KEY, "default", "--threads", "0"), 2, ("threads=0",)),
        ((KEY, "default", "--set", "M=9"), 2, ("--set M=9", "M≤4")),
        (("qkv|N=8,KV=8,K=8,D=8|bf16|M≤4", "default", "--set", "batch=3"), 1, ("4 rows are not those of 3",)),
        ((KEY, "default", "--with", "no_such.py"), 1, ("no_such.py", "no such file")),
        ((KEY, "default", "--perf-control", "a"), 2, ("--perf-control a", "CTL,ACK")),
        ((KEY, "default", "--perf-control", "no.ctl,no.ack"), 2, ("no.ctl", "mkfifo no.ctl")),
        ((KEY, "default", "--perf-control", "RUN,RUN"), 2, ("is no pipe", "mkfifo")),
    ],
    ids=lambda value: " ".join(map(str, value))[:50] if isinstance(value, tuple) else str(value),
)
def test_what_cannot_be_run_is_one_line(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], made: Any, cli_inside: Cli, tmp_path: Path
) -> None:
    run = str(made.run([made.verdict(KEY)]))
    done = cli_inside(tmp_path / "empty", "repro", *(text.replace("RUN", run) for text in arguments), code=code)
    line = complaint(done)
    assert all(word in line for word in words), line
    assert done.stdout == ""


def test_an_op_of_ones_own_by_its_example(own: Path, tmp_path: Path, cli_inside: Cli) -> None:
    home = tmp_path / "home"
    arguments = ("repro", TURN, "right", "--with", own, "--calls", 40, "--warmup", 2, "--set", "offset=2", "--json")
    document = json.loads(cli_inside(home, *arguments).stdout)
    assert document["inputs"]["options"] == {"offset": 2.0}
    assert document["check"]["agrees"] is True
    assert document["weights"]["layout"] == "right:copied"
    assert document["weights"]["prepared_bytes"] == document["weights"]["bytes"] == 36 * document["layers"]
    assert document["layers"] > 1
    assert document["measured"]["calls"] == 40
    assert any("stay in caches" in note for note in document["notes"])
    assert not list(tmp_path.glob("**/*.jsonl")), "importing the file has tuned something"


@pytest.mark.parametrize(
    ("key", "tactic", "words"),
    [
        ("demo::bare|x.1=3|fp32|M≤4", "default", ("op demo::bare", "give it an example", "tb.op('demo::bare'")),
        (TURN, "fails", (f"fails on {TURN}", "ValueError: no")),
        (TURN, "unprepared", ("preparing weights: ValueError: no",)),
        (TURN, "tires", (f"tires on {TURN}: called again after its check: ValueError: no",)),
        (TURN, "greedy", ("greedy on", "the limit is", "TUNEBOOK_MEMORY_LIMIT_GB")),
        ("demo::turn|x.1=3,w.0=4,w.1=3|fp32|M≤4", "default", ("its example", "another problem (w.0: 4 ≠ 3)")),
        ("demo::lost|x.1=3|fp32|x.0≤4", "default", ("has the sizes x.0=3, not x.0=4",)),
        ("demo::lost|x.1=3|fp32|x.0≤3@exact", "default", ("another problem",)),
        ("demo::all|x.1=3|fp32|x.0≤4", "default", ("demo::all is a collective",)),
    ],
)
def test_an_op_of_ones_own_that_cannot_be_run_is_one_line(
    key: str, tactic: str, words: tuple[str, ...], own: Path, tmp_path: Path, cli_inside: Cli
) -> None:
    done = cli_inside(tmp_path / "home", "repro", key, tactic, "--with", own, *FEW, code=1)
    line = complaint(done)
    assert all(word in line for word in words), line
    assert done.stdout == ""


def test_a_default_that_fails_on_its_example_is_one_line(tmp_path: Path, cli_inside: Cli) -> None:
    path = tmp_path / "lost.py"
    path.write_text(OWN.partition('@tb.op("demo::bare"')[0].replace("return x @ w", "raise KeyError(3)"))
    done = cli_inside(tmp_path, "repro", TURN, "right", "--with", path, *FEW, code=1)
    assert "op demo::turn: its own function fails on its example: KeyError: 3" in complaint(done)


def test_a_wrong_output_is_measured_and_an_error(own: Path, tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path / "home", "repro", TURN, "wrong", "--with", own, *FEW, code=1)
    assert f"wrong on {TURN} is wrong: example: row " in complaint(done)
    assert "output: WRONG, example: row " in done.stdout
    assert "  now:  " in done.stdout
    done = cli_inside(tmp_path / "home", "repro", TURN, "wrong", "--with", own, *FEW, "--json", code=1)
    check = json.loads(done.stdout)["check"]
    assert (check["agrees"], check["error"]) == (False, None)
    assert check["detail"].startswith("example: row ")


@pytest.mark.parametrize(("calls", "warmup"), [(1, 0), (5, 0), (257, 3), (1000, None), (512, 0), (513, 0), (5001, 0)])
def test_exactly_so_many_calls_are_measured(calls: int, warmup: int | None, tmp_path: Path, cli_inside: Cli) -> None:
    more = ("--warmup", warmup) if warmup is not None else ()
    done = cli_inside(tmp_path, "repro", KEY, "default", "--calls", calls, *more, "--layers", 7, "--json")
    measured = json.loads(done.stdout)["measured"]
    assert measured["calls"] == calls
    assert measured["samples"] == -(-calls // measured["calls_a_sample"])
    assert measured["samples"] <= 512


def test_by_default_it_measures_for_a_time(tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path, "repro", KEY, "default", "--seconds", 0.05, "--json")
    document = json.loads(done.stdout)
    measured = document["measured"]
    assert measured["calls"] == measured["samples"] * measured["calls_a_sample"] > 0
    assert document["layers"] > 100, "small weights take turns"


# A profiler


class Perf:
    """The other end of the two pipes: notes what it is told, and answers as perf does."""

    def __init__(self, folder: Path, *, answers: bool = True) -> None:
        self.pipes = [str(folder / name) for name in PIPES]
        for name in self.pipes:
            os.mkfifo(name)
        self._fds = [os.open(name, os.O_RDWR | os.O_NONBLOCK) for name in self.pipes]
        self._answers = answers
        self.told: list[str] = []
        self._ends = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ends:
            if select.select([self._fds[0]], [], [], 0.05)[0]:
                for command in os.read(self._fds[0], 64).decode().split():
                    self.told.append(command)
                    if self._answers:
                        os.write(self._fds[1], b"ack\n\0")

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def perf(tmp_path: Path) -> Iterator[Perf]:
    made = Perf(tmp_path)
    yield made
    made.close()


def test_perf_is_told_where_the_measured_calls_begin_and_end(perf: Perf, tmp_path: Path, cli_inside: Cli) -> None:
    cli_inside(tmp_path / "home", "repro", KEY, "default", *FEW, "--perf-control", ",".join(perf.pipes))
    assert perf.told == ["enable", "disable"]


def test_pipes_at_whose_end_nobody_is_are_an_error(
    tmp_path: Path, cli_inside: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Perf(tmp_path, answers=False)
    monkeypatch.setattr("tunebook.cli._gate.PATIENCE_S", 0.1)
    arguments = ("repro", KEY, "default", *FEW, "--perf-control", ",".join(silent.pipes))
    try:
        line = complaint(cli_inside(tmp_path / "home", *arguments, code=2))
        assert "perf did not answer to enable within 0.1 s" in line
    finally:
        silent.close()
    line = complaint(cli_inside(tmp_path / "home", *arguments, code=2))
    assert f"start it under perf with --delay=-1 --control=fifo:{','.join(silent.pipes)}" in line


@pytest.mark.parametrize("how", ["signal", "enter", "interrupt"])
def test_it_waits_to_be_told_and_prints_its_process(
    how: str, tmp_path: Path, cli_environment: Callable[..., dict[str, str]]
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tunebook", "repro", KEY, "default", *map(str, FEW), "--wait", "--json"],
        env=cli_environment(tmp_path / "home"),
        stdin=theirs if how == "enter" else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"process {process.pid} is ready; kill -USR1 {process.pid}" in line
        assert ("Enter" in line) == (how == "enter")
        assert process.poll() is None
        if how == "enter":
            os.write(ours, b"\n")
        else:
            process.send_signal(signal.SIGUSR1 if how == "signal" else signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)
    if how == "interrupt":
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err
    else:
        assert (process.returncode, err) == (0, "")
        assert json.loads(out)["measured"]["calls"] == 3


PROCESS = ["/opt/a b/python", "-m", "tunebook", "repro", "linear|N=8|bf16|M≤4", "mine[kind='1']", "--calls", "100"]


@pytest.mark.parametrize(
    ("device", "system", "processor", "tools"),
    [
        ("cpu", "linux", "Intel(R) Xeon(R) Processor", ["perf", "perf", "vtune"]),
        ("cpu", "linux", "AMD EPYC 9R14", ["perf", "perf"]),
        ("cpu", "darwin", "Apple M4", []),
        ("cpu", "win32", "Intel(R) Core(TM) i7", ["vtune"]),
        ("cuda:0", "linux", "Intel(R) Xeon(R) Processor", ["nsys", "ncu"]),
    ],
)
def test_profilers_fit_the_device_and_run_just_this_process(
    device: str, system: str, processor: str, tools: list[str]
) -> None:
    found = profilers(PROCESS, device, system=system, processor=processor)
    assert [profiler.tool for profiler in found] == tools
    for profiler in found:
        words = shlex.split(profiler.command.rpartition("; ")[2])
        assert words[0] == profiler.tool
        start = words.index(PROCESS[0])
        rest = words[start:]
        if profiler.tool == "perf":
            assert rest == [*PROCESS, "--perf-control", ",".join(PIPES)]
            assert f"--control=fifo:{','.join(PIPES)}" in words[:start]
            assert "--delay=-1" in words[:start]
        elif profiler.tool == "ncu":
            assert rest == [*PROCESS[:-2], "--calls", "10", "--warmup", "3"]
        else:
            assert rest == PROCESS
