"""kill -9 at random moments of a tuning: whether files can be read, what was lost, and whether resuming repeats anything."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _faults import Figure
from _faults_kills_tuning import ROWS, tune
from _forked import FORKED

from tunebook.errors import StoreError
from tunebook.store import Run, read_cache, read_run

#: A process that takes so long, in seconds, hangs.
DEADLINE_S = 300.0
#: Kills that came after the end do not count; so many of them in a row are too many.
MOST_MISSED = 20

Call = tuple[int, str]  #: rows of the bucket, tactic


@dataclass
class Counted:
    """What was counted over all kills."""

    kills: int = 0
    unreadable: int = 0
    most_lost: int = 0
    resumed: int = 0
    trouble: list[str] = field(default_factory=list)


def kills(count: int, seed: int) -> list[Figure]:
    """Kill `count` tunings in processes of their own, each at a random moment, and resume each. Half of them are fresh."""
    rng = random.Random(seed)
    counted = Counted()
    with tempfile.TemporaryDirectory(prefix="tunebook-kills-") as name:
        folder = Path(name)
        lasts = _reference(folder / "reference")
        missed = 0
        while counted.kills < count and missed < MOST_MISSED:
            place = folder / str(counted.kills)
            policy = "fresh" if counted.kills % 2 else "reuse"
            shutil.copytree(folder / "reference" / "seeded", place)
            if _killed(place, policy, rng.uniform(0, lasts)):
                counted.kills += 1
                missed = 0
                _examine(place, policy, counted)
            else:
                missed += 1
            shutil.rmtree(place)
    for text in counted.trouble:
        print(text)
    return [
        Figure(name="kills_tuning", value=counted.kills, goal=f"{count}", met=counted.kills == count),
        Figure(name="kills_tuning_unreadable", value=counted.unreadable, goal="0", met=counted.unreadable == 0),
        Figure(
            name="kills_tuning_most_trials_lost", value=counted.most_lost, goal="at most 1", met=counted.most_lost <= 1
        ),
        Figure(
            name="kills_tuning_resumed",
            value=counted.resumed,
            goal="all, to the end, and nothing measured twice",
            met=counted.resumed == counted.kills > 0,
        ),
    ]


def _reference(folder: Path) -> float:
    """A tuning that nobody kills: its seconds, and its cache, in the directory ``seeded``, that the others find."""
    folder.mkdir()
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=tune, args=(folder, folder / "trace", theirs))
    process.start()
    theirs.close()
    assert _told(ours) == "begun", "the tuning did not begin"
    started = time.monotonic()
    assert _told(ours) == "done", "the tuning did not end"
    lasts = time.monotonic() - started
    process.join(DEADLINE_S)
    seeded = folder / "seeded"
    seeded.mkdir()
    document = json.loads((folder / "cache.json").read_text())
    document["verdicts"] = {
        key.replace("killed", "other"): {**verdict, "problem": key.replace("killed", "other")}
        for key, verdict in document["verdicts"].items()
    }
    (seeded / "cache.json").write_text(json.dumps(document))
    return lasts


def _told(pipe: Any) -> str | None:
    """The next word of a process; None where it ended without one, or hangs."""
    with suppress(EOFError, OSError):
        if pipe.poll(DEADLINE_S):
            word: str = pipe.recv()
            return word
    return None


def _killed(place: Path, policy: str, delay: float) -> bool:
    """Kill a tuning so many seconds after it began; False where it had ended by then."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=tune, args=(place, place / "trace", theirs), kwargs={"policy": policy})
    process.start()
    theirs.close()
    assert _told(ours) == "begun", "the tuning did not begin"
    ended = ours.poll(delay)
    process.kill()
    process.join(DEADLINE_S)
    path = next((place / "runs").glob("*.jsonl"), None)
    return not ended and path is not None and not _ended(path)


def _ended(path: Path) -> bool:
    """Whether a run has its last line: the kill came in the moment before the process said that it was done."""
    with suppress(StoreError):  # what cannot be read is counted as such
        return read_run(path).footer is not None
    return False


def _examine(place: Path, policy: str, counted: Counted) -> None:
    """Read what a kill left, count what is lost, resume, and count again."""
    (path,) = (place / "runs").glob("*.jsonl")
    where = f"kill {counted.kills} ({policy})"
    try:
        run = read_run(path)
        wrong = [*map(str, run.misses)]
    except StoreError as error:
        counted.unreadable += 1
        counted.trouble.append(f"{where}: {error}")
        return
    cache = read_cache(place / "cache.json", run.header.environment)
    if len(cache.verdicts) < 4 or cache.misses or wrong:
        counted.unreadable += 1
        counted.trouble.append(f"{where}: {[*map(str, cache.misses), *wrong]}")
    lost = _lost(path, run, _calls(place / "trace"))
    counted.most_lost = max(counted.most_lost, lost)
    if lost > 1:
        counted.trouble.append(f"{where}: {lost} trials were lost")
    problem = _resumed(place, path, policy, run)
    counted.resumed += problem is None
    if problem is not None:
        counted.trouble.append(f"{where}: {problem}")


def _resumed(place: Path, path: Path, policy: str, before: Run) -> str | None:
    """What is wrong with how the run went on, or None."""
    known = len(path.read_bytes().splitlines()) - before.torn
    ours, theirs = FORKED.Pipe()
    trace = place / "trace2"
    process = FORKED.Process(target=tune, args=(place, trace, theirs), kwargs={"resume": path})
    process.start()
    theirs.close()
    words = [_told(ours), _told(ours)]
    process.join(DEADLINE_S)
    if "done" not in words:
        process.kill()
        return f"the run did not go on to its end: {words[-1]}"
    after = read_run(path)
    if after.footer is None or after.misses or len(after.verdicts) != 4:
        return f"the run has {len(after.verdicts)} verdicts, footer {after.footer}, misses {[*map(str, after.misses)]}"
    settled = [key for key, held in before.problems.items() if held.verdict is not None and not held.open]
    if any(after.verdicts[key] != before.verdicts[key] for key in settled):
        return "a verdict that was settled has changed"
    cached = {key for key in read_cache(place / "cache.json", after.header.environment).verdicts if "killed" in key}
    if (cached == set(after.verdicts)) != (policy == "reuse"):
        return f"the cache holds {sorted(cached)}"
    called = _calls(trace)
    refused = {(_rows(key), name) for key, held in before.problems.items() for name in held.rejected}
    if again := refused & set(called):
        return f"tried again although they were rejected: {sorted(again)}"
    return _repeated(path, known, called, _checks(before))


def _repeated(path: Path, known: int, calls: Sequence[Call], checked: set[Call]) -> str | None:
    """Which tactic was called more often than the new lines tell, but for one call each to warm it up."""
    told: Counter[Call] = Counter()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    races = {line["race"]: line for line in lines if line["type"] == "race"}
    new = lines[known:]
    for line in new:
        if line["type"] == "passed":
            told[_rows(line["problem"]), line["tactic"]] += _most_check_calls(_rows(line["problem"]))
        elif line["type"] == "look":
            told[_rows(line["problem"]), line["tactic"]] += 2
        elif line["type"] == "trial":
            told[_rows(line["problem"]), line["trial"]["tactic"]] += _most_check_calls(_rows(line["problem"]))
        elif line["type"] == "sample":
            race = races[line["race"]]
            told[_rows(race["problem"]), race["tactics"][line["tactic"]]] += race["inner"]
    for call, made in Counter(calls).items():
        if call[1] != "default" and made > told[call] + 1:
            return f"{call[1]} of {call[0]} rows was called {made} times, and the file tells of {told[call]}"
    again = {(_rows(line["problem"]), line["tactic"]) for line in new if line["type"] == "passed"} & checked
    samples = Counter((line["race"], line["round"], line["tactic"]) for line in lines if line["type"] == "sample")
    if again or max(samples.values(), default=1) > 1:
        return f"checked twice: {sorted(again)}; sampled twice: {[one for one, n in samples.items() if n > 1]}"
    return None


def _checks(run: Run) -> set[Call]:
    """The tactics that passed their check, by problem."""
    return {(_rows(key), name) for key, known in run.problems.items() for name in known.passed}


def _lost(path: Path, run: Run, calls: Sequence[Call]) -> int:
    """How many trials were begun of which the file does not tell.

    A trial is one tactic's check, or one tactic's sample in one round. Once a race has begun, the calls on a problem are those
    of its samples in the order of the file, and what follows them is lost. Before, each tactic that was called passed or was
    rejected, or is lost.
    """
    lost = 0
    for rows in {rows for rows, _ in calls}:
        mine = [name for where, name in calls if where == rows]
        known = next((held for key, held in run.problems.items() if _rows(key) == rows), None)
        if known is None or not known.races:
            told = set() if known is None else {*known.passed, *known.rejected}
            lost += len(set(mine) - told - {"default"})
            continue
        inner = known.races[-1].line.inner
        expected = [name for name in _sampled(path, rows) for _ in range(inner)]
        lost += math.ceil(_tail(mine, expected) / inner)
    return lost


def _tail(calls: Sequence[str], expected: Sequence[str]) -> int:
    """How many calls follow the expected ones, which end the rest."""
    for extra in range(len(calls) - len(expected) + 1):
        if list(calls[len(calls) - extra - len(expected) : len(calls) - extra]) == list(expected):
            return extra
    return len(calls)


def _sampled(path: Path, rows: int) -> Iterable[str]:
    """The tactics of a problem's samples, in the order of the file; its torn last line is none."""
    races: dict[int, Any] = {}
    for text in path.read_bytes().split(b"\n")[:-1]:
        line = json.loads(text)
        if line["type"] == "race":
            races[line["race"]] = line
        elif line["type"] == "sample" and _rows(races[line["race"]]["problem"]) == rows:
            yield races[line["race"]]["tactics"][line["tactic"]]


def _calls(trace: Path) -> list[Call]:
    """The calls that were begun, in order, under the rows of their bucket."""
    if not trace.exists():
        return []
    found = []
    for line in trace.read_text().splitlines():
        kind, rows, tactic = line.split(" ")
        if kind == "b":
            found.append((1 << (int(rows) - 1).bit_length(), tactic))
    return found


def _most_check_calls(rows: int) -> int:
    """A check's calls: at both edges of the bucket and between, each size once; twice where there is one size.

    One that takes too long, as on a machine that stops for a moment, is made once more.
    """
    return (3 if rows == ROWS else 2) + 1


def _rows(problem: str) -> int:
    """The rows of a problem's bucket, by its key."""
    return int(problem.rpartition("≤")[2])
