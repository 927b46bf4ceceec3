"""Fault scenarios of publishing: many processes on one cache, and processes killed at each step of a publish.

Shared by soak.py and tests/faults/test_publish.py. The work is done by a process that imports the store alone and forks the
others. A child is stopped at a named step by wrappers around the system calls that a publish makes, put there in the child.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from _faults import Figure

import tunebook
from tunebook.records import Dim, Environment, Member, Offered, Problem, Verdict
from tunebook.store import Location, publish, read_cache

#: A process that has not done its work by then hangs: a publish waits 30 s for a lock at most.
DEADLINE_S = 600.0
READ_PAUSE_S = 0.05
ENVIRONMENT = Environment(hard={"device": "cpu", "isa": "avx512"}, soft={})

#: Step, system call, whether the child stops before or after it, and which of the calls are meant.
STEPS: dict[str, tuple[str, str, str]] = {
    "shard created": ("open", "after", ".d/"),
    "shard written": ("fsync", "before", ".d/"),
    "shard on the disk": ("replace", "before", ".d/"),
    "shard in its place": ("replace", "after", ".d/"),
    "lock opened": ("open", "after", ".lock"),
    "lock held": ("flock", "after", ""),
    "cache created": ("open", "after", "/.w.json."),
    "cache written": ("fsync", "before", "/.w.json."),
    "cache on the disk": ("replace", "before", "/w.json"),
    "cache in its place": ("replace", "after", "/w.json"),
    "shard about to go": ("unlink", "before", ".d/"),
    "shard gone": ("unlink", "after", ".d/"),
    "lock about to be released": ("unlock", "before", ""),
}
#: From here on what was published must be found, whoever dies.
KEPT_FROM = "shard in its place"


def publishing(processes: int = 16, publishes: int = 25, repetitions: int = 1, seed: int = 0) -> list[Figure]:
    """`processes` publish `publishes` verdicts each, one by one, to one cache while another process reads it all the time."""
    counted = _apart("publishing", processes, publishes, repetitions, seed)
    expected = processes * publishes * repetitions
    return [
        Figure(name="publishes_expected", value=expected, goal="processes x publishes x repetitions", met=expected > 0),
        Figure(
            name="publishes_present",
            value=counted["present"],
            goal=f"{expected}, and no publish says that something was not kept ({counted['complaints']} did)",
            met=counted["present"] == expected and not counted["complaints"],
        ),
        Figure(name="publishes_reads", value=counted["reads"], goal="readers read meanwhile", met=counted["reads"] > 0),
        _none("publishes_torn_reads", counted["torn"], "reads with a miss, or without what an earlier read had"),
    ]


def kills(count: int = 20, seed: int = 0) -> list[Figure]:
    """`count` processes are killed at the steps of a publish in turn; every other one while another waits for the lock."""
    counted = _apart("kills", count, seed)
    return [
        Figure(name="kills_publish", value=counted["killed"], goal=f"{count}", met=counted["killed"] == count),
        _none("kills_publish_unreadable", counted["unreadable"], "reads of the cache with a miss"),
        _none("kills_publish_blocked", counted["blocked"], "later publishes that fail, or do not come to the cache"),
        _none("kills_publish_lost", counted["lost"], "verdicts missing that a publish had kept"),
        _none(
            "kills_publish_leftovers", counted["leftovers"], "files left after an hour, the cache and its lock apart"
        ),
    ]


def _none(name: str, value: int, what: str) -> Figure:
    return Figure(name=name, value=value, goal=f"0 {what}", met=value == 0)


def _apart(*work: object) -> dict[str, int]:
    """Do it in a process of its own, which may fork: this one may have threads."""
    paths = [str(Path(tunebook.__file__).parents[1]), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(work)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the scenario ended with exit code {done.returncode}: {done.stderr}")
    sys.stderr.write(done.stderr)  # what went wrong, in words
    counted: dict[str, int] = json.loads(done.stdout)
    return counted


# What follows runs there.


def verdict(writer: int, number: int) -> Verdict:
    problem = Problem(
        op="linear",
        attrs=(("N", str(writer)), ("K", "32")),
        dtypes=("bf16",),
        dims=(Dim(name="M", size=number + 1),),
    )
    return Verdict(
        problem=problem.key,
        winner="onednn[batch_hint=16]",
        status="proven",
        speedup=1.5,
        low=1.4,
        high=1.6,
        seconds=1e-4,
        frontier=(
            Member(tactic="onednn[batch_hint=16]", ratio=1.0, low=1.0, high=1.0),
            Member(tactic="default", ratio=1.5, low=1.4, high=1.6),
        ),
        offered={"onednn": Offered(version="1", space="ab12")},
    )


def put(cache: Path, one: Verdict) -> bool:
    """Publish one verdict; whether all went as it should."""
    published = publish(Location.of(ENVIRONMENT, cache), ENVIRONMENT, {one.problem: one}, {})
    if published.problem or published.note or not published.written or published.shard:
        print(published, file=sys.stderr)
        return False
    return True


def _put(cache: Path, one: Verdict) -> int:
    return 0 if put(cache, one) else 1


def forked(work: Callable[[], int]) -> int:
    """A child process that does `work` and ends with what it returns; its id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.alarm(int(DEADLINE_S))
        code = work()
    except Exception as error:  # noqa: BLE001 - a child must not go on as its parent
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _publishing(processes: int, publishes: int, repetitions: int, seed: int) -> dict[str, int]:
    counted = {"present": 0, "complaints": 0, "reads": 0, "torn": 0}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "w.json"
            with reading(cache, counted):
                writers = [
                    forked(partial(_write, cache, n, publishes, random.Random(f"{seed} {repetition} {n}")))
                    for n in range(processes)
                ]
                counted["complaints"] += sum(map(bool, map(ended, writers)))
            contents = read_cache(cache, ENVIRONMENT)
            expected = {verdict(n, k).problem for n in range(processes) for k in range(publishes)}
            counted["present"] += len(expected & set(contents.verdicts))
            counted["torn"] += len(contents.misses) + (Path(f"{cache}.d").exists())
    return counted


def _write(cache: Path, writer: int, publishes: int, rng: random.Random) -> int:
    order = list(range(publishes))
    rng.shuffle(order)
    return sum(not put(cache, verdict(writer, number)) for number in order) and 1


@contextmanager
def reading(cache: Path, counted: dict[str, int]) -> Iterator[None]:
    """Another process reads the cache over and over meanwhile; `counted` gets how often, and what went wrong."""
    stop, stopped = os.pipe()
    answer, answered = os.pipe()
    child = forked(partial(_read, cache, stop, answered))
    os.close(answered)
    try:
        yield
    finally:
        os.write(stopped, b"x")
        with os.fdopen(answer) as report:
            reads, torn = json.loads(report.read() or "[0, 1]")
        counted["reads"] += reads
        counted["torn"] += torn + (ended(child) != 0)
        os.close(stop)
        os.close(stopped)


def _read(cache: Path, stop: int, answer: int) -> int:
    reads = torn = 0
    known: set[str] = set()
    while not select.select([stop], [], [], READ_PAUSE_S)[0]:
        contents = read_cache(cache, ENVIRONMENT)
        found = set(contents.verdicts)
        wrong = [miss for miss in contents.misses if miss.kind != "absent"]
        if wrong or known - found:
            print(f"a read: {wrong[:1]}, {len(known - found)} verdicts that were there are missing", file=sys.stderr)
            torn += 1
        known = found
        reads += 1
    os.write(answer, json.dumps([reads, torn]).encode())
    return 0


def _kills(count: int, seed: int) -> dict[str, int]:
    counted = dict.fromkeys(("killed", "unreadable", "blocked", "lost", "leftovers"), 0)
    rng = random.Random(seed)
    names = list(STEPS)
    rng.shuffle(names)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "w.json"
        kept = {verdict(0, 0).problem}
        counted["blocked"] += not put(cache, verdict(0, 0))
        for n in range(count):
            step, victim, next_one = names[n % len(names)], verdict(1, n), verdict(2, n)
            waiting = (n % len(names) + n // len(names)) % 2 == 1  # each step with and without, in turn
            child = forked(partial(_stop_at, step, cache, victim))
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                print(f"{step}: was not reached", file=sys.stderr)
                continue
            counted["unreadable"] += _wrong(cache, step)
            other = forked(partial(_put, cache, next_one)) if waiting else 0
            if waiting:
                time.sleep(0.1)  # it waits for the lock now, or is done where the lock is free
            os.kill(child, signal.SIGKILL)
            counted["killed"] += ended(child) == -signal.SIGKILL
            counted["unreadable"] += _wrong(cache, step)
            other = other or forked(partial(_put, cache, next_one))
            counted["blocked"] += ended(other) != 0
            kept.add(next_one.problem)
            if list(STEPS).index(step) >= list(STEPS).index(KEPT_FROM):
                kept.add(victim.problem)
            there = set(read_cache(cache, ENVIRONMENT).verdicts)
            if kept - there:
                print(f"{step}: lost {sorted(kept - there)}", file=sys.stderr)
            counted["lost"] += len(kept - there)
        for left in Path(folder).rglob("*.tmp"):
            os.utime(left, (time.time() - 7200,) * 2)
        counted["blocked"] += not put(cache, verdict(3, 0))
        left_over = sorted(path.name for path in Path(folder).rglob("*"))
        counted["leftovers"] += len(set(left_over) - {"w.json", "w.json.lock"})
    return counted


def _wrong(cache: Path, step: str) -> bool:
    contents = read_cache(cache, ENVIRONMENT)
    len(contents.verdicts)
    if contents.misses:
        print(f"{step}: {contents.misses[0]}", file=sys.stderr)
    return bool(contents.misses)


def _stop_at(step: str, cache: Path, one: Verdict) -> int:
    """Publish, and stop at `step` for good."""
    call, when, which = STEPS[step]
    module: Any = fcntl if call in ("flock", "unlock") else os
    name = "flock" if call == "unlock" else call
    real = getattr(module, name)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        meant = _meant(call, which, arguments)
        if meant and when == "before":
            os.kill(os.getpid(), signal.SIGSTOP)
        result = real(*arguments, **named)
        if meant and when == "after":
            os.kill(os.getpid(), signal.SIGSTOP)
        return result

    setattr(module, name, wrapper)
    return _put(cache, one)


def _meant(call: str, which: str, arguments: tuple[Any, ...]) -> bool:
    if call in ("flock", "unlock"):
        return bool(arguments[1] & fcntl.LOCK_UN) == (call == "unlock")
    path = arguments[1] if call == "replace" else arguments[0]
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    return str(path).endswith(which) if which in (".lock", "/w.json") else which in str(path)


if __name__ == "__main__":
    kind, *numbers = json.loads(sys.argv[1])
    print(json.dumps(_publishing(*numbers) if kind == "publishing" else _kills(*numbers)))
