"""A tuning that was killed or interrupted goes on in its run file, and calls nothing for what the file holds."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tunebook.errors import StoreError
from tunebook.records import Rejected, Verdict
from tunebook.store import read_cache, read_run

CROWD = {"p": tuple(range(6))}
TEN = tuple(range(10))


class Killed(BaseException):
    """Ends a tuning without any of its own endings, as kill -9 does."""


def key(op: str) -> str:
    return f"{op}|x.1=3|fp32|M≤1"


@contextmanager
def bomb(
    machine: Any, calls: int, error: type[BaseException], armed: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """The call of that number, of whatever tactic, raises `error`. Those while calls are collected are not counted."""
    real, done = machine.work, 0

    def work(seconds: float, sigma: float | None = None) -> None:
        nonlocal done
        done += not machine.quiet and armed()
        if done == calls and not machine.quiet:
            raise error
        real(seconds, sigma)

    machine.work = work
    try:
        yield
    finally:
        machine.work = real


def kill(lab: Any, asked: Mapping[str, Sequence[int]], budget: float | None, calls: int, **options: Any) -> bool:
    """Tune until the call of that number; whether it came to that. The process's files are closed, as its end would."""
    try:
        with bomb(lab.machine, calls, Killed):
            lab.tune(asked, budget, **options)
    except Killed:
        lab.session.record.writer().close()
        return True
    return False


def lines(path: Path | str, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, Path(path).read_text().splitlines())
    return [line for line in found if line["type"] == kind]


def told(path: str) -> Counter[tuple[str, str]]:
    """The calls of each tactic, by op, that the run file accounts for: two of a check that was passed, two of another first
    look, one of a turn of halving, and those of the samples. The default's checks and warm-up are not in the file."""
    calls: Counter[tuple[str, str]] = Counter()
    races = {line["race"]: line for line in lines(path, "race")}
    for line in lines(path, "passed"):
        calls[line["problem"].partition("|")[0], line["tactic"]] += 2
    for line in lines(path, "look"):
        calls[line["problem"].partition("|")[0], line["tactic"]] += 2 if line["turn"] == -1 else 1
    for line in lines(path, "sample"):
        race = races[line["race"]]
        calls[race["problem"].partition("|")[0], race["tactics"][line["tactic"]]] += race["inner"]
    return calls


def nothing_twice(path: str, calls: Counter[tuple[str, str]], most_lost: int) -> None:
    """Beside what the file tells, each tactic was called once to warm it up, at most, and one was in progress at the kill."""
    known = told(path)
    extra = {name: count - known[name] for name, count in calls.items() if name[1] != "default" and known[name]}
    assert all(count >= 0 for count in extra.values()), extra
    lost = {name: count for name, count in extra.items() if count > 1}
    assert len(lost) <= 1, lost
    assert all(count <= 1 + most_lost for count in lost.values()), lost
    samples = [(line["race"], line["round"], line["tactic"]) for line in lines(path, "sample")]
    assert len(set(samples)) == len(samples), "a sample of the same tactic in the same round"


def two_ops(lab: Any) -> dict[str, list[int]]:
    """Six tactics that are near each other, one of which is wrong, and a plain op."""
    lab.op("crowd", 1e-2, sigma=0.3)
    lab.runner("crowd", "near", CROWD, lambda size, p: 5e-3 * (1 + 0.01 * p), sigma=0.3, right=lambda p: p != 3)
    lab.op("plain", 3e-4)
    lab.runner("plain", "fast", {"p": (1, 2)}, lambda size, p: 1e-4 * p)
    return {"crowd": [1], "plain": [1]}


def test_wherever_it_is_killed_nothing_is_measured_twice(lab: Any) -> None:
    asked = two_ops(lab)
    lab.tune(asked, 6.0)
    total = sum(lab.calls.values())
    for calls in random.Random(7).sample(range(3, total), 30):
        lab.cache = lab.cache.with_name(f"{calls}.json")
        two_ops(lab)
        if not kill(lab, asked, 6.0, calls, policy="fresh"):
            continue
        before, path = Counter(lab.calls), lab.session.run_path
        held = {verdict.problem: verdict for verdict in read_run(path).verdicts.values()}
        settled = {name for name, known in read_run(path).problems.items() if known.verdict and not known.open}
        outcome = lab.tune(asked, 6.0, resume=path)
        assert lab.session.run_path == path
        assert set(outcome.verdicts) == {key("crowd"), key("plain")}
        assert outcome.resumed == len(settled)
        assert {name: outcome.verdicts[name] for name in settled} == {name: held[name] for name in settled}
        nothing_twice(path, before + lab.calls, most_lost=40)
        assert (before + lab.calls)["crowd", "near[p=3]"] <= 2, "a tactic that was rejected is not tried again"
        run = read_run(path)
        assert run.footer is not None
        assert run.footer.problems == 2
        assert len(run.resumed) == 1
        assert run.misses == ()
        for verdict in run.verdicts.values():
            rounds = [number for number, _ in lab.samples(verdict.problem, "default") if number >= 0]
            assert sorted(rounds) == list(range(verdict.rounds)), "each round of a problem once"


def test_it_may_be_killed_again_and_again(lab: Any) -> None:
    asked = two_ops(lab)
    assert kill(lab, asked, 6.0, 20)
    path, calls = lab.session.run_path, Counter(lab.calls)
    for number in (7, 11, 19, 23):
        if not kill(lab, asked, 6.0, number, resume=path):
            break
        calls += lab.calls
    else:
        lab.tune(asked, 6.0, resume=path)
    assert read_run(path).footer is not None
    samples = [(line["race"], line["round"], line["tactic"]) for line in lines(path, "sample")]
    assert len(set(samples)) == len(samples)


def test_a_thousand_tactics_are_not_tried_again_and_halving_goes_on_with_its_turns(lab: Any) -> None:
    def cost(size: int, *, a: int, b: int, c: int) -> float:
        return 1e-3 * math.exp(0.03 * ((a - 6) ** 2 + (b - 3) ** 2 + (c - 5) ** 2))

    lab.op("o", 4e-3, sigma=0.1)
    lab.runner("o", "r", {"a": TEN, "b": TEN, "c": TEN}, cost, sigma=0.1)
    lab.tune({"o": [1]}, 4.0)
    total = sum(lab.calls.values())
    for calls in random.Random(1).sample(range(3, total), 8):
        lab.cache = lab.cache.with_name(f"{calls}.json")
        assert kill(lab, {"o": [1]}, 4.0, calls)
        before, path = Counter(lab.calls), lab.session.run_path
        verdict = lab.tune({"o": [1]}, 4.0, resume=path).verdicts[key("o")]
        nothing_twice(path, before + lab.calls, most_lost=10)
        assert verdict.seen == 1 + len({name for _, name in before + lab.calls} - {"default"})
        assert lab.session.run_path == path


def test_a_race_that_was_cut_short_ends_its_round_with_those_that_lack(lab: Any) -> None:
    lab.op("crowd", 0.1, sigma=0.3)
    lab.runner("crowd", "near", CROWD, lambda size, p: 0.05, sigma=0.3)
    for calls in range(40, 80):
        lab.cache = lab.cache.with_name(f"{calls}.json")
        assert kill(lab, {"crowd": [1]}, 60.0, calls)
        path = lab.session.run_path
        if 7 < len(lines(path, "sample")) < 14:
            break
    lab.tune({"crowd": [1]}, 60.0, resume=path)
    by_round = Counter(line["round"] for line in lines(path, "sample"))
    assert by_round[0] == by_round[1] == 7
    assert len(lines(path, "race")) == 1


def test_the_default_s_sample_in_a_round_that_was_cut_short_counts_although_it_is_eliminated(lab: Any) -> None:
    lab.op("crowd", 0.1, sigma=0.3)
    lab.runner("crowd", "near", CROWD, lambda size, p: 0.02 * (1 + 0.002 * p), sigma=0.3)
    lab.op("other", 0.09)
    lab.runner("other", "fast", {"p": (1,)}, lambda size, p: 0.04)
    asked = {"crowd": [1], "other": [1]}
    found = 0
    for calls in range(90, 240):
        lab.cache = lab.cache.with_name(f"{calls}.json")
        if not kill(lab, asked, 60.0, calls):
            break
        path = lab.session.run_path
        raced = {line["race"]: line for line in lines(path, "race") if line["problem"] == key("crowd")}
        samples = [line for line in lines(path, "sample") if line["race"] in raced]
        last = [line for line in samples if line["round"] == samples[-1]["round"]]
        out = {place for line in lines(path, "out") if line["race"] in raced for place in line["tactics"]}
        if last[0]["round"] >= 8 and [line["tactic"] for line in last] == [0] and 0 in out:
            found += 1
            assert set(lab.tune(asked, 60.0, resume=path).verdicts) == {key("crowd"), key("other")}
            rounds = [number for number, _ in lab.samples(key("crowd"), "default")]
            assert len(rounds) == len(set(rounds))
    assert found


# -------------------------------------------------------------------------------------------------------- interruptions


def test_ctrl_c_judges_the_open_race_and_publishes_it(lab: Any) -> None:
    lab.op("crowd", 0.1, sigma=0.3)
    lab.runner("crowd", "near", CROWD, lambda size, p: 0.05 * (1 + 0.01 * p), sigma=0.3)
    with pytest.raises(KeyboardInterrupt) as caught, bomb(lab.machine, 60, KeyboardInterrupt):
        lab.tune({"crowd": [1]}, 60.0)
    path = lab.session.run_path
    (note,) = caught.value.__notes__
    assert note == f"go on with: tunebook.autotune(resume={path!r})"
    kept = read_cache(lab.cache, lab.session.environment).verdicts[key("crowd")]
    assert kept == read_run(path).verdicts[key("crowd")]
    assert kept.status in ("unresolved", "likely")
    assert kept.winner.startswith("near")
    assert "it was interrupted" in kept.note
    whole = Counter(line["round"] for line in lines(path, "sample"))
    assert kept.rounds == max(whole)
    outcome = lab.tune({"crowd": [1]}, 60.0, resume=path)
    after = outcome.verdicts[key("crowd")]
    assert after.rounds > kept.rounds
    assert "interrupted" not in after.note
    assert outcome.tuned == 1
    assert read_cache(lab.cache, lab.session.environment).verdicts[key("crowd")] == after


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_sigint_ends_a_tuning_though_another_process_holds_the_lock_and_the_next_start_has_its_results(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "other"):
        lab.op(name, 0.1)
        lab.runner(name, "fast", {"p": (1,)}, lambda size, p: 0.04)

    def progress(done: int, total: int, what: str) -> None:
        if done == 1:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    lock = f"{lab.cache}.lock"
    try:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(KeyboardInterrupt) as caught:
                lab.tune({"one": [1], "other": [1]}, 60.0, progress=progress)
            assert not lab.cache.exists()
            (settled,) = read_cache(lab.cache, lab.session.environment).verdicts
            holder.kill()
    finally:
        signal.signal(signal.SIGINT, before)
    (note,) = caught.value.__notes__
    assert note.startswith("go on with: ")
    assert f"another process has held {lock} for 1 s" in caplog.text
    outcome = lab.tune({"one": [1], "other": [1]}, 60.0)
    assert (outcome.cached, outcome.tuned) == (1, 1)
    assert not lab.calls[settled.partition("|")[0], "fast[p=1]"]
    assert set(read_cache(lab.cache, lab.session.environment).verdicts) == {key("one"), key("other")}
    assert not Path(f"{lab.cache}.d").exists()


def test_an_interruption_while_a_race_goes_on_counts_its_new_rounds(lab: Any) -> None:
    lab.op("crowd", 0.1, sigma=0.3)
    lab.runner("crowd", "near", CROWD, lambda size, p: 0.05 * (1 + 0.002 * p), sigma=0.3)
    lab.op("quick", 0.09)
    lab.runner("quick", "fast", {"p": (1,)}, lambda size, p: 0.04)
    going = False

    def progress(done: int, total: int, what: str) -> None:
        nonlocal going
        going = going or what.startswith("going on")

    with pytest.raises(KeyboardInterrupt), bomb(lab.machine, 30, KeyboardInterrupt, lambda: going):
        lab.tune({"crowd": [1], "quick": [1]}, 22.0, progress=progress)
    verdicts = [
        line["verdict"] for line in lines(lab.session.run_path, "verdict") if line["verdict"]["problem"] == key("crowd")
    ]
    assert len(verdicts) >= 2
    assert verdicts[-1]["rounds"] > verdicts[-2]["rounds"]
    assert verdicts[-1]["note"] == "it was interrupted"


def test_an_interruption_before_two_rounds_decides_nothing_and_loses_nothing(lab: Any) -> None:
    asked = two_ops(lab)
    with pytest.raises(KeyboardInterrupt), bomb(lab.machine, 12, KeyboardInterrupt):
        lab.tune(asked, 6.0)
    path = lab.session.run_path
    assert read_run(path).verdicts == {}
    assert not lab.cache.exists()
    assert len(lines(path, "passed")) >= 3
    before = Counter(lab.calls)
    lab.tune(asked, 6.0, resume=path)
    nothing_twice(path, before + lab.calls, most_lost=2)


def test_after_the_run_has_ended_there_is_nothing_to_go_on_with(lab: Any) -> None:
    asked = two_ops(lab)
    lab.tune(asked, 6.0)
    size = Path(lab.session.run_path).stat().st_size
    with pytest.raises(StoreError, match="ended by itself"):
        lab.tune(asked, 6.0, resume=lab.session.run_path)
    assert Path(lab.session.run_path).stat().st_size == size


# ------------------------------------------------------------------------------------------------- what does not hold


def test_a_runner_that_has_changed_is_raced_anew_and_named(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    def declare(version: str) -> dict[str, list[int]]:
        lab.op("o", 0.1, sigma=0.2)
        lab.runner("o", "stays", {"p": (1, 2)}, lambda size, p: 0.05, sigma=0.2)
        lab.runner("o", "changes", {"p": (1, 2)}, lambda size, p: 0.049, sigma=0.2, version=version)
        return {"o": [1]}

    asked = declare("1")
    assert kill(lab, asked, 60.0, 60)
    path = lab.session.run_path
    assert len(lines(path, "race")) == 1
    asked = declare("2")
    verdict = lab.tune(asked, 60.0, resume=path).verdicts[key("o")]
    checks = {name: lab.calls["o", name] - sum(
        race["inner"]
        for line in lines(path, "sample")
        for race in lines(path, "race")
        if race["race"] == line["race"] == 2 and race["tactics"][line["tactic"]] == name
    ) for name in ("stays[p=1]", "stays[p=2]", "changes[p=1]", "changes[p=2]")}  # fmt: skip
    assert checks == {"stays[p=1]": 1, "stays[p=2]": 1, "changes[p=1]": 3, "changes[p=2]": 3}, "checked, or warmed up"
    assert verdict.offered["changes"].version == "v:2"
    said = [record.getMessage() for record in caplog.records if "is not what it was" in record.getMessage()]
    assert said == [
        "op o: runner changes is not what it was when the run was interrupted: what was measured of it does not count"
    ]
    first, second = lines(path, "race")
    assert second["first"] > first.get("first", 0), "rounds are numbered on"
    assert verdict.rounds > second["first"]


def test_a_default_that_has_changed_makes_everything_begin_again(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    lab.op("o", 0.1)
    lab.runner("o", "r", {"p": (1, 2)}, lambda size, p: 0.05)
    assert kill(lab, {"o": [1]}, 60.0, 20)
    path = lab.session.run_path
    text = Path(path).read_text()
    (offered,) = {line["offered"]["default"]["version"] for line in lines(path, "problem")}
    Path(path).write_text(text.replace(offered, "another"))
    lab.tune({"o": [1]}, 60.0, resume=path)
    assert lab.calls["o", "r[p=1]"] > 2
    assert "the default is not what it was" in caplog.text
    assert len([line for line in lines(path, "passed") if line["tactic"] == "r[p=1]"]) == 2


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (lambda header: header["environment"]["hard"].update(device="another"), "another environment .device: another ≠ made up"),
        (lambda header: header.update(fingerprint="f00d", model="granite"), "tuned granite .fingerprint f00d"),
        (lambda header: header.update(settings={}), "was not written so that it can be resumed"),
        (lambda header: header.update(policy="replay"), "was not written so that it can be resumed"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_go_on_here_is_refused_in_one_line_and_left_alone(
    lab: Any, tamper: Any, complaint: str
) -> None:
    asked = two_ops(lab)
    assert kill(lab, asked, 6.0, 30)
    path = Path(lab.session.run_path)
    first, _, rest = path.read_text().partition("\n")
    header = json.loads(first)
    tamper(header)
    text = json.dumps(header) + "\n" + rest
    path.write_text(text)
    with pytest.raises(StoreError, match=complaint) as caught:
        lab.tune(asked, 6.0, resume=str(path))
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_a_run_that_another_process_writes_is_refused(lab: Any) -> None:
    asked = two_ops(lab)
    with suppress(Killed), bomb(lab.machine, 30, Killed):
        lab.tune(asked, 6.0)
    writing = lab.session
    with pytest.raises(StoreError, match="another process is writing this run"):
        lab.tune(asked, 6.0, resume=writing.run_path)
    writing.record.writer().close()
    assert lab.tune(asked, 6.0, resume=writing.run_path).verdicts


def test_samples_that_do_not_fit_each_other_make_the_race_begin_again(lab: Any) -> None:
    """Whoever edits a run file gets a race that begins anew, not a failure."""
    asked = two_ops(lab)
    assert kill(lab, asked, 6.0, 60)
    path = Path(lab.session.run_path)
    text = path.read_text().splitlines(keepends=True)
    samples = [place for place, line in enumerate(text) if '"type":"sample"' in line]
    assert len(samples) > 8
    del text[samples[1]], text[samples[0]]
    path.write_text("".join(text))
    outcome = lab.tune(asked, 6.0, resume=str(path))
    assert set(outcome.verdicts) == {key("crowd"), key("plain")}
    assert len([line for line in lines(path, "race") if line["problem"] == key("crowd")]) == 2


def test_the_run_keeps_its_policy_seed_and_selection(lab: Any) -> None:
    asked = two_ops(lab)
    assert kill(lab, asked, 6.0, 30, policy="fresh", seed=5, thorough=True)
    lab.tune(asked, 6.0, resume=lab.session.run_path)
    assert lab.session.policy.value == "fresh"
    assert (lab.session.settings.seed, lab.session.settings.thorough) == (5, True)
    assert lab.session.location.cache == lab.cache
    assert not lab.cache.exists()


# --------------------------------------------------------------------------------------------------------- the run file


def test_a_race_that_was_given_up_is_in_the_file_under_its_own_number(lab: Any) -> None:
    lab.op("o", 0.1, sigma=0.3)
    lab.runner("o", "near", CROWD, lambda size, p: 0.05, sigma=0.3)
    lab.runner("o", "late", {"p": (1,)}, lambda size, p: 0.04, sigma=0.3, fails_after=7)
    verdict: Verdict = lab.tune({"o": [1]}, 60.0).verdicts[key("o")]
    run = lab.run()
    races = {line.race for line in run.trials if line.race}
    assert len(races) == 2
    failed = [line for line in run.trials if line.trial.tactic == "late[p=1]"]
    assert [isinstance(line.trial, Rejected) for line in failed] == [False, True]
    rounds = [number for number, _ in lab.samples(key("o"), "default") if number >= 0]
    assert rounds == list(range(verdict.rounds))


def test_what_is_rejected_or_passed_is_in_the_file_before_the_next_is_tried(lab: Any) -> None:
    lab.op("o", 0.01)
    lab.runner("o", "r", {"p": tuple(range(6))}, lambda size, p: 0.005, right=lambda p: p % 2 == 0)
    for calls in range(3, 22):
        lab.cache = lab.cache.with_name(f"{calls}.json")
        assert kill(lab, {"o": [1]}, 60.0, calls)
        path = lab.session.run_path
        done = {line["tactic"] for line in lines(path, "passed")} | {
            line["trial"]["tactic"] for line in lines(path, "trial")
        }
        tried = {name for _, name in lab.calls}
        assert len(tried - done - {"default"}) <= 1, "the one in progress"
