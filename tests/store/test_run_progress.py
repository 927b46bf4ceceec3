"""The lines that a tuning writes as it goes: read as trials, cut anywhere, contradicted, and taken up by another process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook import records
from tunebook.errors import StoreError
from tunebook.records import (
    Footer,
    Header,
    LookLine,
    Offered,
    OutLine,
    PassedLine,
    ProblemLine,
    RaceLine,
    Rejected,
    ResumedLine,
    RunLine,
    SampleLine,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)
from tunebook.store import RunWriter, read_run

NOW = datetime(2025, 1, 2, 3, 4, 5)
KEY = "linear|N=64,K=32|bf16|M≤16"
OFFERED = {name: Offered(version="1", space="ab") for name in ("default", "torch", "native")}
REJECTED = Rejected(tactic="torch[kind=bmm]", reason="correctness", detail="row 0 is off")


def a_problem() -> list[RunLine]:
    """A problem as it is written: a tactic that is rejected, one that is screened out, and two races of which one is given up."""
    return [
        ProblemLine(problem=KEY, offered=OFFERED),
        PassedLine(problem=KEY, tactic="default", seconds=3e-4),
        TrialLine(problem=KEY, trial=REJECTED),
        PassedLine(problem=KEY, tactic="torch[kind=mm]", seconds=2e-4, error=1e-6),
        PassedLine(problem=KEY, tactic="native[a=1]", seconds=9e-4, error=2e-6, bytes=64, workspace=8),
        LookLine(problem=KEY, tactic="native[a=1]", seconds=8e-4, turn=-1),
        RaceLine(race=1, problem=KEY, tactics=("default", "torch[kind=mm]"), inner=4),
        SampleLine(race=1, round=0, tactic=1, seconds=2e-4),
        SampleLine(race=1, round=0, tactic=0, seconds=3e-4),
        SampleLine(race=1, round=1, tactic=0, seconds=3.1e-4),
        PassedLine(problem=KEY, tactic="native[a=2]", seconds=1e-4, error=3e-6),
        RaceLine(race=2, problem=KEY, tactics=("default", "torch[kind=mm]", "native[a=2]"), inner=4, first=2),
        *(SampleLine(race=2, round=2 + n, tactic=t, seconds=(3 - t) / 10000) for n in range(3) for t in range(3)),
        OutLine(race=2, tactics=(1,)),
    ]


def timed(tactic: str, samples: tuple[float, ...], rounds: tuple[int, ...], error: float, **more: int) -> Timed:
    return Timed(tactic=tactic, samples=samples, rounds=rounds, error=error, **more)


def write(folder: Path, header: Header, lines: list[RunLine]) -> Path:
    with RunWriter.create(folder, "winners", header, NOW) as writer:
        for line in lines:
            writer.append(line)
    assert writer.problem is None
    assert writer.path is not None
    return writer.path


def test_samples_are_read_as_trials_of_each_tactic_and_race(tmp_path: Path, header: Header) -> None:
    run = read_run(write(tmp_path, header, a_problem()))
    assert run.misses == ()
    assert [(line.race, line.trial) for line in run.trials] == [
        (0, REJECTED),
        (0, timed("native[a=1]", (8e-4,), (-1,), 2e-6, bytes=64)),
        (1, timed("default", (3e-4, 3.1e-4), (0, 1), 0.0, inner=4)),
        (1, timed("torch[kind=mm]", (2e-4,), (0,), 1e-6, inner=4)),
        (2, timed("default", (3e-4,) * 3, (2, 3, 4), 0.0, inner=4)),
        (2, timed("torch[kind=mm]", (2e-4,) * 3, (2, 3, 4), 1e-6, inner=4)),
        (2, timed("native[a=2]", (1e-4,) * 3, (2, 3, 4), 3e-6, inner=4)),
    ]
    known = run.problems[KEY]
    assert known.offered == OFFERED
    assert set(known.passed) == {"default", "torch[kind=mm]", "native[a=1]", "native[a=2]"}
    assert known.rejected == {REJECTED.tactic: REJECTED}
    assert [(race.line.race, race.out, race.newcomers) for race in known.races] == [
        (1, set(), {"native[a=2]"}),
        (2, {"torch[kind=mm]"}, set()),
    ]
    assert known.rounds == 5


def test_turns_of_halving_are_rounds_before_the_race(tmp_path: Path, header: Header) -> None:
    lines = a_problem()[:6] + [
        LookLine(problem=KEY, tactic="torch[kind=mm]", seconds=s, turn=t) for s, t in ((5e-4, -2), (6e-4, -3))
    ]
    run = read_run(write(tmp_path, header, lines))
    by_tactic = {line.trial.tactic: line.trial for line in run.trials}
    assert by_tactic["torch[kind=mm]"] == timed("torch[kind=mm]", (2e-4, 5e-4, 6e-4), (-1, -2, -3), 1e-6)
    assert by_tactic["default"] == timed("default", (3e-4,), (-1,), 0.0), (
        "nothing raced, so that all that is known is shown"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (SampleLine(race=9, round=0, tactic=0, seconds=1e-4), "race 9 did not begin"),
        (SampleLine(race=2, round=9, tactic=3, seconds=1e-4), "race 2 has 3 tactics, and none at 3"),
        (SampleLine(race=2, round=4, tactic=0, seconds=1e-4), "a second sample of default in round 4"),
        (SampleLine(race=2, round=1, tactic=0, seconds=1e-4), "of default in round 1, or one of another race"),
        (OutLine(race=9, tactics=(0,)), "race 9 did not begin"),
        (OutLine(race=2, tactics=(7,)), "none at 7"),
        (RaceLine(race=2, problem=KEY, tactics=("default",), inner=1), "race 2 begins twice"),
        (LookLine(problem=KEY, tactic="native[a=7]", seconds=1e-4, turn=-1), "did not pass a check"),
    ],
)
def test_a_line_that_contradicts_those_before_it_is_named(
    tmp_path: Path, header: Header, line: RunLine, complaint: str
) -> None:
    lines = a_problem()
    whole = read_run(write(tmp_path / "whole", header, lines))
    run = read_run(write(tmp_path / "bad", header, [*lines, line, TrialLine(problem=KEY, trial=REJECTED)]))
    (miss,) = run.misses
    assert complaint in miss.detail
    assert miss.where.endswith(f"line {len(lines) + 2}")
    assert run.trials[:-1] == whole.trials
    assert run.trials[-1].trial == REJECTED, "what follows is read"


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"sample","race":1,"round":0,"tactic":0,"seconds":0}',
        '{"type":"sample","race":1,"round":0,"tactic":0,"seconds":-1e-4}',
        '{"type":"sample","race":1,"round":0,"tactic":0,"seconds":1e999}',
        '{"type":"sample","race":1,"round":-1,"tactic":0,"seconds":1e-4}',
        '{"type":"sample","race":1,"round":0,"tactic":-1,"seconds":1e-4}',
        '{"type":"race","race":1,"problem":"linear|N=64|bf16|M=1","tactics":["default","default"],"inner":1}',
        '{"type":"race","race":1,"problem":"linear|N=64|bf16|M=1","tactics":["torch"],"inner":1}',
        '{"type":"race","race":1,"problem":"linear|N=64|bf16|M=1","tactics":["default"],"inner":0}',
        '{"type":"race","race":1,"problem":"linear|N=64|bf16|M=1","tactics":["default"],"inner":99999999999}',
        '{"type":"out","race":1,"tactics":[-1]}',
        '{"type":"passed","problem":"linear|N=64|bf16|M=1","tactic":"torch","seconds":1e-4,"bytes":-1}',
        '{"type":"look","problem":"linear|N=64|bf16|M=1","tactic":"torch","seconds":1e-4,"turn":1}',
        '{"type":"problem","problem":"no key","offered":{}}',
    ],
)
def test_an_impossible_line_is_a_miss(tmp_path: Path, header: Header, text: str) -> None:
    path = write(tmp_path, header, a_problem())
    whole = read_run(path)
    with path.open("a") as file:
        file.write(text + "\n")
    run = read_run(path)
    assert len(run.misses) == 1
    assert run.trials == whole.trials


@settings(deadline=None, max_examples=40)
@given(cut=st.floats(0, 1))
def test_a_file_that_is_cut_anywhere_loses_the_line_in_progress_alone(
    tmp_path_factory: pytest.TempPathFactory, header: Header, cut: float
) -> None:
    lines = a_problem()
    path = write(tmp_path_factory.mktemp("runs"), header, lines)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    end = first + int(cut * (len(data) - first))
    path.write_bytes(data[:end])
    run = read_run(path)
    assert run.misses == ()
    whole = data[first:end].count(b"\n")
    sampled = sum(len(line.trial.rounds) for line in run.trials if line.race and isinstance(line.trial, Timed))
    written = sum(isinstance(line, SampleLine) for line in lines[:whole])
    assert sampled in (written, written + 1)
    # and the next process goes on behind it
    with RunWriter.reopen(path) as writer:
        writer.resume(ResumedLine(resumed="2025-01-02T04:00:00"))
        for line in lines[whole + (data[:end][-1:] != b"\n" and not run.torn and end > first) :]:
            writer.append(line)
    again = read_run(path)
    assert (again.misses, again.torn, len(again.resumed)) == ((), False, 1)
    assert [line.trial for line in again.trials] == [
        line.trial for line in read_run(write(path.parent / "b", header, lines)).trials
    ]


# ------------------------------------------------------------------------------------------------------------- reopening


def test_what_was_torn_is_cut_off_and_a_lone_line_break_is_added(tmp_path: Path, header: Header) -> None:
    path = write(tmp_path, header, a_problem())
    whole = path.read_bytes()
    for tail, kept in ((b'{"type":"sample","race":2,"rou', b""), (b"\x00" * 300_000, b"")):
        path.write_bytes(whole + tail)
        with RunWriter.reopen(path) as writer:
            writer.resume(ResumedLine(resumed="now"))
        assert path.read_bytes() == whole + kept + b'{"type":"resumed","resumed":"now"}\n'
    path.write_bytes(whole[:-1])
    with RunWriter.reopen(path) as writer:
        writer.resume(ResumedLine(resumed="now"))
    assert path.read_bytes() == whole + b'{"type":"resumed","resumed":"now"}\n'


def test_nothing_is_written_before_it_is_resumed(tmp_path: Path, header: Header) -> None:
    path = write(tmp_path, header, a_problem())
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    RunWriter.reopen(path).close()
    assert path.read_bytes() == before


WRITER = """
import sys
from datetime import datetime
from pathlib import Path
import msgspec
from tunebook.records import Header
from tunebook.store import RunWriter

writer = RunWriter.create(Path(sys.argv[1]), "winners", msgspec.json.decode(sys.argv[2], type=Header), datetime.now())
print(writer.path, flush=True)
sys.stdin.read()
"""


def test_a_run_is_one_process_s_until_it_ends_however_it_ends(tmp_path: Path, header: Header) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), msgspec.json.encode(header).decode()]
    environment = {**os.environ, "PYTHONPATH": str(Path(records.__file__).parents[2])}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        with pytest.raises(StoreError, match="another process is writing this run") as caught:
            RunWriter.reopen(path)
        assert "\n" not in str(caught.value)
        process.kill()
        process.wait()
    RunWriter.reopen(path).close()


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="No such file"):
        RunWriter.reopen(tmp_path / "none.jsonl")
    with pytest.raises(StoreError, match="directory"):
        RunWriter.reopen(tmp_path)

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        RunWriter.reopen(tmp_path / "run.jsonl")


def test_an_exception_amid_a_line_costs_that_line_alone(
    tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter.create(tmp_path, "winners", header, NOW)
    writer.append(TrialLine(problem=KEY, trial=REJECTED))
    real = os.write

    def interrupted(fd: int, data: bytes) -> int:
        real(fd, data[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.append(TrialLine(problem=KEY, trial=REJECTED))
    writer.append(TrialLine(problem=KEY, trial=REJECTED))
    writer.finish(Footer(finished="now", seconds=1.0, problems=1))
    assert writer.path is not None
    run = read_run(writer.path)
    assert (len(run.trials), len(run.misses), run.torn) == (2, 1, False)
    assert run.footer is not None


# ------------------------------------------------------------------------------------------------------------- a second run


def test_a_problem_that_is_begun_again_forgets_what_has_changed(tmp_path: Path, header: Header) -> None:
    lines = a_problem()
    changed = {**OFFERED, "native": Offered(version="2", space="ab")}
    run = read_run(write(tmp_path, header, [*lines, ProblemLine(problem=KEY, offered=changed)]))
    known = run.problems[KEY]
    assert set(known.passed) == {"default", "torch[kind=mm]"}
    assert known.races == [], "what was raced with it says nothing now"
    assert known.rounds == 5, "and its rounds are numbered on"
    assert set(known.rejected) == {REJECTED.tactic}
    other = {**OFFERED, "default": Offered(version="2", space="")}
    known = read_run(write(tmp_path, header, [*lines, ProblemLine(problem=KEY, offered=other)])).problems[KEY]
    assert (known.passed, known.rejected, known.races) == ({}, {}, []), "all were checked against the default"


def test_an_open_verdict_says_so_and_is_served_like_others(
    tmp_path: Path, header: Header, make_verdict: Callable[..., Verdict]
) -> None:
    verdict = make_verdict()
    path = write(tmp_path, header, [*a_problem(), VerdictLine(verdict=verdict, open=True)])
    run = read_run(path)
    assert run.problems[verdict.problem].open
    assert run.verdicts == {verdict.problem: verdict}
    assert json.loads(path.read_text().splitlines()[-1])["open"] is True
    with RunWriter.reopen(path) as writer:
        writer.verdict(verdict)
    assert not read_run(path).problems[verdict.problem].open


def test_a_sample_is_a_short_line(tmp_path: Path, header: Header) -> None:
    """So that a tuning of some hundred problems stays within a few megabytes: the problem's key is in the race's line alone."""
    line = SampleLine(race=123, round=34, tactic=12, seconds=0.00012345678901234567)
    before = write(tmp_path, header, []).stat().st_size
    after = write(tmp_path, header, [line]).stat().st_size
    assert after - before < 100
