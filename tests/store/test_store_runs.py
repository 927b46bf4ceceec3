"""Run files: written as the tuning goes, read whatever happened to the writer."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
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
    SCHEMA,
    Environment,
    Footer,
    Header,
    Plan,
    RaceLine,
    Reason,
    Rejected,
    SampleLine,
    Timed,
    TrialLine,
    Verdict,
)
from tunebook.store import Run, RunWriter, read_any, read_cache, read_run
from tunebook.store.objects import MAX_ENTRY_BYTES
from tunebook.store.run_writer import encode_line

NOW = datetime(2025, 1, 2, 3, 4, 5)
KEY = "linear|N=64,K=32|bf16|M≤16"
TIMED = Timed(tactic="onednn[batch_hint=16]", samples=(1e-4, 1.25e-4), rounds=(0, 1))
REJECTED = Rejected(tactic="torch[kind=bmm]", reason="memory", detail="needs 9 GB")
FOOTER = Footer(finished="2025-01-02T03:05:00", seconds=55.0, problems=1)


def write(folder: Path, header: Header, verdict: Verdict, plan: Plan) -> Path:
    with RunWriter.create(folder, "winners", header, NOW) as writer:
        writer.trial(KEY, TIMED)
        writer.trial(KEY, REJECTED)
        writer.verdict(verdict)
        writer.plan(plan)
        writer.finish(FOOTER)
    assert writer.problem is None
    assert writer.path is not None
    return writer.path


@pytest.fixture
def path(tmp_path: Path, header: Header, make_verdict: Callable[..., Verdict], make_plan: Callable[..., Plan]) -> Path:
    return write(tmp_path / "runs", header, make_verdict(), make_plan())


def test_what_is_written_is_read_back(
    path: Path, header: Header, make_verdict: Callable[..., Verdict], make_plan: Callable[..., Plan]
) -> None:
    assert path.name == "winners.20250102_030405.jsonl"
    run = read_run(path)
    assert run == Run(
        path=path,
        header=header,
        trials=(TrialLine(problem=KEY, trial=TIMED), TrialLine(problem=KEY, trial=REJECTED)),
        verdicts={make_verdict().problem: make_verdict()},
        plans={"f00d": make_plan()},
        footer=FOOTER,
        torn=False,
        misses=(),
    )
    assert read_any(path) == run
    first, *_, last = path.read_text().splitlines()
    assert (json.loads(first)["type"], json.loads(first)["schema"]) == ("header", SCHEMA)
    assert json.loads(last)["type"] == "footer"


def test_two_runs_of_one_second_get_two_files(tmp_path: Path, header: Header) -> None:
    writers = [RunWriter.create(tmp_path, "winners", header, NOW) for _ in range(4)]
    names = [writer.path.name for writer in writers if writer.path is not None]
    base = "winners.20250102_030405"
    assert names == [f"{base}.jsonl", f"{base}-1.jsonl", f"{base}-2.jsonl", f"{base}-3.jsonl"]
    writers[1].trial(KEY, TIMED)
    for writer in writers:
        writer.close()
    assert [len(read_run(tmp_path / name).trials) for name in names] == [0, 1, 0, 0]


def test_a_link_in_the_place_of_the_run_is_not_followed(tmp_path: Path, header: Header) -> None:
    (tmp_path / "winners.20250102_030405.jsonl").symlink_to(tmp_path / "elsewhere")
    with RunWriter.create(tmp_path, "winners", header, NOW) as writer:
        assert writer.path == tmp_path / "winners.20250102_030405-1.jsonl"
    assert not (tmp_path / "elsewhere").exists()


def test_every_line_is_in_the_file_before_the_next_begins(
    tmp_path: Path, header: Header, make_verdict: Callable[..., Verdict]
) -> None:
    with RunWriter.create(tmp_path, "winners", header, NOW) as writer:
        assert writer.path is not None
        assert read_run(writer.path).trials == ()
        writer.trial(KEY, TIMED)
        assert len(read_run(writer.path).trials) == 1
        writer.verdict(make_verdict())
        run = read_run(writer.path)
    assert len(run.verdicts) == 1
    assert run.footer is None
    assert not run.torn


def test_the_last_verdict_and_the_last_plan_count(
    tmp_path: Path, header: Header, make_verdict: Callable[..., Verdict], make_plan: Callable[..., Plan]
) -> None:
    with RunWriter.create(tmp_path, "winners", header, NOW) as writer:
        for speedup in (2.0, 3.0):
            writer.verdict(make_verdict(speedup=speedup))
        for active in (True, False):
            writer.plan(make_plan(active=active))
    assert writer.path is not None
    run = read_run(writer.path)
    assert [verdict.speedup for verdict in run.verdicts.values()] == [3.0]
    assert [plan.active for plan in run.plans.values()] == [False]


def test_permissions_follow_the_umask(tmp_path: Path, header: Header) -> None:
    before = os.umask(0o027)
    try:
        writer = RunWriter.create(tmp_path / "runs", "winners", header, NOW)
    finally:
        os.umask(before)
    writer.close()
    assert writer.path is not None
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o640


def test_a_command_line_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path, header: Header) -> None:
    odd = msgspec.structs.replace(header, command=("tunebook", "a\udc80b"))
    with RunWriter.create(tmp_path, "winners", odd, NOW) as writer:
        pass
    assert writer.path is not None
    assert read_run(writer.path).header.command == ("tunebook", "a?b")


# What cannot be kept does not stop a tuning.


def warned(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tunebook.store", logging.WARNING)
    return record.getMessage()


def test_no_file_can_be_created(
    tmp_path: Path, header: Header, make_verdict: Callable[..., Verdict], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    writer = RunWriter.create(tmp_path / "file" / "runs", "winners", header, NOW)
    with writer:
        writer.trial(KEY, TIMED)
        writer.verdict(make_verdict())
        writer.finish(FOOTER)
    assert writer.path is None
    assert writer.problem == warned(caplog)
    assert str(tmp_path / "file" / "runs") in writer.problem
    assert "TUNEBOOK_CACHE_DIR" in writer.problem


def test_a_file_in_the_place_of_the_directory(tmp_path: Path, header: Header) -> None:
    (tmp_path / "runs").write_text("mine")
    writer = RunWriter.create(tmp_path / "runs", "winners", header, NOW)
    assert writer.path is None
    assert writer.problem is not None
    assert (tmp_path / "runs").read_text() == "mine"


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "write", full)
    writer = RunWriter.create(tmp_path, "winners", header, NOW)
    assert writer.path is None
    assert "No space left" in warned(caplog)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_costs_the_rest_of_the_run(
    tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter.create(tmp_path, "winners", header, NOW)
    writer.trial(KEY, TIMED)
    room = [30]
    real = os.write

    def nearly_full(fd: int, data: bytes) -> int:
        if not room:
            full()
        return real(fd, data[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", nearly_full)
        writer.trial(KEY, REJECTED)
    first = writer.problem
    # There is room again, but a line after half a line would be lost with it.
    writer.trial(KEY, TIMED)
    writer.finish(FOOTER)
    assert writer.problem == first == warned(caplog)
    assert writer.path is not None
    assert "free some space" in warned(caplog)
    run = read_run(writer.path)
    assert (len(run.trials), run.torn, run.footer, run.misses) == (1, True, None, ())


def test_a_short_write_is_continued(tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:50]))
    with RunWriter.create(tmp_path, "winners", header, NOW) as writer:
        writer.trial(KEY, TIMED)
    assert writer.problem is None
    assert writer.path is not None
    assert len(read_run(writer.path).trials) == 1


def test_a_directory_deleted_during_the_tuning_is_noticed(
    tmp_path: Path, header: Header, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter.create(tmp_path / "runs", "winners", header, NOW)
    shutil.rmtree(tmp_path / "runs")
    writer.trial(KEY, TIMED)
    writer.trial(KEY, TIMED)
    writer.close()
    assert "deleted" in warned(caplog)


def test_a_line_after_the_end_is_not_lost_in_silence(
    tmp_path: Path, header: Header, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter.create(tmp_path, "winners", header, NOW)
    writer.finish(FOOTER)
    assert writer.problem is None
    writer.trial(KEY, TIMED)
    assert "closed" in warned(caplog)


WRITER = """
import sys
from datetime import datetime
from pathlib import Path
import msgspec
from tunebook.records import Header, Timed
from tunebook.store import RunWriter

writer = RunWriter.create(Path(sys.argv[1]), "winners", msgspec.json.decode(sys.argv[2], type=Header), datetime.now())
n = 0
while True:
    n += 1
    writer.trial(f"linear|K={n}|bf16|M=1", Timed(tactic="torch", samples=(1e-4,) * 400, rounds=tuple(range(400))))
    print(n, flush=True)
"""


def test_a_killed_process_leaves_all_but_the_trial_in_progress(tmp_path: Path, header: Header) -> None:
    text = msgspec.json.encode(header).decode()
    source = Path(records.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), text],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 50:
            pass
        process.kill()
        written = [*process.stdout.read().split(), b"50"]
    (path,) = tmp_path.iterdir()
    run = read_run(path)
    assert len(run.trials) >= max(int(number) for number in written if number.isdigit())
    assert run.misses == ()
    assert run.footer is None


# Reading what others wrote.


def test_a_torn_last_line_costs_that_line_alone(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        run = read_run(path)
        assert (len(run.trials), len(run.verdicts), len(run.plans)) == (2, 1, 1)
        assert (run.torn, run.footer, run.misses) == (True, None, ())
    path.write_bytes(whole[:-1])  # only the line break is missing
    assert (read_run(path).torn, read_run(path).footer) == (False, FOOTER)


def test_bad_lines_in_the_middle_are_named(path: Path, make_verdict: Callable[..., Verdict]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    bad = [
        b"not json\n",
        b'{"type": "trial"}\n',
        b'{"type": "comment"}\n',
        b"\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b'{"type": "verdict", "verdict": {"problem": "\x1b[2J"}}\n',
        lines[0],
    ]
    path.write_bytes(b"".join([*lines[:2], *bad, *lines[2:]]))
    run = read_run(path)
    assert (len(run.trials), run.torn, run.footer) == (2, False, FOOTER)
    assert run.verdicts == {make_verdict().problem: make_verdict()}
    assert [miss.where for miss in run.misses] == [f"{path}, line {n}" for n in (3, 4, 5, 7, 8, 9, 10)]
    assert all(miss.kind == "entry" and str(miss).isprintable() for miss in run.misses)
    assert run.misses[-1].detail == "a second header"


def test_bad_lines_are_bounded(path: Path) -> None:
    with path.open("a") as file:
        file.write("x\n" * 5000)
    misses = read_run(path).misses
    assert len(misses) == 101
    assert "4900 more" in misses[-1].detail


def lines_of(header: Header, **fields: object) -> bytes:
    return json.dumps({"type": "header", **json.loads(msgspec.json.encode(header)), **fields}).encode()


@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1])
def test_another_schema_is_refused_by_number(tmp_path: Path, header: Header, schema: int) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines_of(header, schema=schema, environment="of a form to come"))
    for reader in (read_run, read_any):
        with pytest.raises(StoreError, match=re.escape(f"schema {schema} is ")):
            reader(path)


CASES = [None, b"", b"\n\n", b"hello", b"{}", b'{"type": "header"}', b'{"type": "footer"}', b"[" * 100_000, b"\xff" * 9]


@pytest.mark.parametrize("content", CASES, ids=range(len(CASES)))
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_run_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StoreError, match="more than"):
        read_run(path)


def test_whatever_reads_a_cache_reads_a_run(path: Path, environment: Environment) -> None:
    run = read_run(path)
    contents = read_cache(path, environment)
    assert (contents.verdicts, contents.plans, contents.misses) == (run.verdicts, run.plans, ())
    assert contents.environment == run.header.environment
    path.write_bytes(path.read_bytes()[:-20])
    torn = read_cache(path, environment)
    assert torn.verdicts == run.verdicts
    assert ["cut off" in miss.detail for miss in torn.misses] == [True]
    elsewhere = read_cache(path, Environment(hard={"device": "cuda"}))
    assert elsewhere.verdicts == {}
    assert [miss.kind for miss in elsewhere.misses] == ["environment"]
    path.write_bytes(b'{"type":"header","schema":2}\n')
    newer = read_cache(path, environment)
    assert [miss.kind for miss in newer.misses] == ["schema"]
    assert str(newer.misses[0]).count(str(path)) == 1


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
seconds = st.floats(1e-9, 1e3)
trials = st.lists(seconds, max_size=8).flatmap(
    lambda samples: st.builds(
        Timed,
        tactic=names,
        samples=st.just(tuple(samples)),
        rounds=st.just(tuple(range(len(samples)))),
        inner=st.integers(1, 1000),
        error=st.none() | st.floats(0, 1),
    )
) | st.builds(
    Rejected,
    tactic=names,
    reason=st.sampled_from(list[Reason](["compile", "runtime", "timeout", "correctness", "unavailable"])),
    detail=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@settings(deadline=None)
@given(st.lists(trials, max_size=10), st.floats(0, 1))
def test_any_run_is_read_back_and_any_cut_loses_one_line(
    tmp_path_factory: pytest.TempPathFactory, header: Header, some: list[Timed | Rejected], cut: float
) -> None:
    with RunWriter.create(tmp_path_factory.mktemp("runs"), "winners", header, NOW) as writer:
        for trial in some:
            writer.trial(KEY, trial)
    assert writer.path is not None
    run = read_run(writer.path)
    assert [line.trial for line in run.trials] == some
    assert run.misses == ()
    data = writer.path.read_bytes()
    first = data.index(b"\n") + 1
    end = first + int(cut * (len(data) - first))
    writer.path.write_bytes(data[:end])
    survivors = read_run(writer.path)
    whole = data[first:end].count(b"\n")
    assert [line.trial for line in survivors.trials][:whole] == some[:whole]
    assert len(survivors.trials) in (whole, whole + 1)
    assert survivors.misses == ()


# Many lines at once.


def many_samples(header: Header, rounds: int = 500) -> list[bytes]:
    """The lines of a run with a race of 20 tactics: some hundred kilobytes, more than are decoded at once."""
    names = ("default", *(f"native[block={number}]" for number in range(19)))
    race = RaceLine(race=1, problem=KEY, tactics=names, inner=4)
    samples = (
        SampleLine(race=1, round=number, tactic=place, seconds=(1 + place) / 7e4)
        for number in range(rounds)
        for place in range(len(names))
    )
    return [encode_line(header), encode_line(race), *map(encode_line, samples)]


def respelt(line: bytes) -> bytes:
    """The same values as another program would write them."""
    return json.dumps(json.loads(line), ensure_ascii=True, separators=(" , ", " : ")).encode() + b"\n"


def test_lines_are_numbered_whatever_stands_between_them(tmp_path: Path, header: Header) -> None:
    lines = many_samples(header)
    assert sum(map(len, lines)) > 500_000
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(lines))
    run = read_run(whole)
    assert (len(run.trials), run.misses, run.torn) == (20, (), False)
    bad = {700: b"not json\n", 703: b'{"type":"footer"}\n', 5_001: b"\xff\n", 9_990: lines[0]}
    blank = {2: b"\n", 5_000: b" \t \n", 7_777: b"\r\n"}
    mixed = list(lines)
    for number in sorted({**bad, **blank}):
        mixed.insert(number - 1, {**bad, **blank}[number])
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"".join(mixed))
    found = read_run(path)
    assert [miss.where for miss in found.misses] == [f"{path}, line {number}" for number in sorted(bad)]
    assert found.trials == run.trials
    assert found.problems == run.problems


def test_a_run_that_another_program_has_written_reads_the_same(tmp_path: Path, header: Header) -> None:
    lines = many_samples(header, rounds=30)
    for name, text in {
        "a": b"".join(lines),
        "b": b"".join(map(respelt, lines)),
        "c": b"".join(line if number % 3 else respelt(line) for number, line in enumerate(lines)),
        "d": b"".join(line.replace(b"\n", b"\r\n") for line in lines),
        "e": b"".join(lines).removesuffix(b"\n"),
    }.items():
        (tmp_path / name).write_bytes(text)
        run = read_run(tmp_path / name)
        assert (run.misses, run.torn) == ((), False)
        assert run.trials == read_run(tmp_path / "a").trials
    spread = [*lines[:5], lines[5].replace(b",", b",\n"), *lines[6:]]  # one value on several lines is no line
    (tmp_path / "f").write_bytes(b"".join(spread))
    assert len(read_run(tmp_path / "f").misses) == 5


REPEATED = [
    ('{"type":"sample","race":1,"round":99,"tactic":0,"seconds":1e-4,"seconds":2e-4}', "seconds"),
    ('{"type":"sample","race":1,"race":1,"round":99,"tactic":0,"seconds":0.0001}', "race"),
    ('{"type":"sample","type":"sample","race":1,"round":99,"tactic":0,"seconds":0.0001}', "type"),
    (f'{{"type":"problem","problem":"{KEY}","offered":{{"a":{{"version":"1","space":"","space":"x"}}}}}}', "space"),
    (f'{{"type":"problem","problem":"{KEY}","offered":{{}},"more":{{"x":1,"x":1}}}}', "x"),
    ('{"type":"resumed","resumed":"now","resumed":"now"}', "resumed"),
]


@pytest.mark.parametrize(("line", "name"), REPEATED)
def test_a_line_that_repeats_a_name_is_a_miss(tmp_path: Path, header: Header, line: str, name: str) -> None:
    lines = many_samples(header, rounds=3)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"".join([*lines, line.encode() + b"\n"]))
    run = read_run(path)
    (miss,) = run.misses
    assert miss.where == f"{path}, line {len(lines) + 1}"
    assert miss.detail == f"field {name} occurs twice"
    path.write_bytes(b"".join(lines))
    assert (run.trials, run.problems) == (read_run(path).trials, read_run(path).problems)


def test_a_header_that_repeats_a_name_is_refused(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"policy":"fresh"', b'"policy":"reuse","policy":"fresh"', 1))
    with pytest.raises(StoreError, match="field policy occurs twice"):
        read_run(path)


def test_a_long_line_is_read_if_it_is_as_tunebook_writes_it(path: Path) -> None:
    """Looking for repeated names takes memory, so that others are read up to the size of a cache's entry."""
    many = Timed(tactic="a", samples=(1e-4,) * 400_000, rounds=tuple(range(400_000)))
    long = encode_line(TrialLine(problem=KEY, trial=many))
    assert len(long) > MAX_ENTRY_BYTES
    text = path.read_bytes()
    path.write_bytes(text + long)
    run = read_run(path)
    assert (len(run.trials), run.misses) == (3, ())
    path.write_bytes(text + long.replace(b",", b", ", 1))
    (miss,) = read_run(path).misses
    assert f"more than the {MAX_ENTRY_BYTES}" in miss.detail
