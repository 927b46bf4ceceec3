"""What looking at runs costs: `show`, `diff` and `history` on runs of 1,000 problems, 20 tactics and 30 samples of each.

Every command is a process of its own, as a user's is; its seconds are wall clock from start to end, its memory the peak of the
resident set. The runs are made up, line by line as a tuning writes them.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import Result, finish, options

from tunebook.book import place_of
from tunebook.devices import device_of
from tunebook.errors import StoreError
from tunebook.records import (
    Environment,
    Footer,
    Header,
    Member,
    Offered,
    PassedLine,
    ProblemLine,
    RaceLine,
    RunLine,
    SampleLine,
    Verdict,
    VerdictLine,
)
from tunebook.store import Location
from tunebook.store.run_writer import encode_line

PROBLEMS, TACTICS, SAMPLES = 1_000, 20, 30
QUICK_PROBLEMS = 50
STARTS, QUICK_STARTS = 3, 2
#: Runs that lie in the directory, of which history reads each a little.
RUNS = 8
LIMIT_S, LIMIT_MB = 1.5, 300.0
STARTER = """
import os, sys, time
started = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", 1, 0)])
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - started, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
OFFERED = {"default": Offered(version="1", space=""), "native": Offered(version="2", space="x")}


def made_up(number: int, environment: Environment, problems: int) -> Iterator[RunLine]:
    """A run; the tactics' true times are the same in each, its samples are not."""
    truth, noise = random.Random(0), random.Random(number)
    started = f"2026-01-01T00:00:{number:02d}"
    yield Header(
        session=f"s{number}", started=started, policy="fresh", environment=environment, version="0", model="a-model"
    )
    names = ("default", *(f"native[kernel=amx,m={i},n=32,prefetch=2]" for i in range(TACTICS - 1)))
    for race in range(problems):
        key = f"linear|N={1024 + race // 10},K=1024|bf16|M≤{2 ** (race % 10)}"
        seconds = {name: 1e-4 * truth.uniform(0.5, 2) for name in names}
        yield ProblemLine(problem=key, offered=OFFERED)
        for name in names[1:]:
            yield PassedLine(problem=key, tactic=name, seconds=seconds[name])
        yield RaceLine(race=race + 1, problem=key, tactics=names, inner=20)
        for turn in range(SAMPLES):
            level = noise.gauss(0, 0.05)
            for place, name in enumerate(names):
                sample = seconds[name] * math.exp(level + noise.gauss(0, 0.02))
                yield SampleLine(race=race + 1, round=turn, tactic=place, seconds=sample)
        winner = min(names, key=seconds.__getitem__)
        ratio = seconds["default"] / seconds[winner] * math.exp(noise.gauss(0, 0.01 if winner != "default" else 0))
        default = (Member(tactic="default", ratio=ratio, low=ratio * 0.98, high=ratio * 1.02),)
        yield VerdictLine(
            verdict=Verdict(
                problem=key,
                winner=winner,
                status="proven",
                speedup=ratio,
                low=ratio * 0.98,
                high=ratio * 1.02,
                seconds=seconds[winner],
                frontier=(
                    Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),
                    *(default if winner != "default" else ()),
                ),
                offered=OFFERED,
                run=f"winners.20260101_0000{number:02d}.jsonl",
                rounds=SAMPLES,
                space=TACTICS,
                seen=TACTICS,
            )
        )
    yield Footer(finished=started, seconds=600.0, problems=problems)


def measured(command: list[str], home: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of one process, started by a small one: a child's peak begins with its parent's."""
    environment = {**os.environ, "TUNEBOOK_CACHE_DIR": str(home), "TUNEBOOK_THREADS": "2"}
    words = [sys.executable, "-c", STARTER, sys.executable, "-m", "tunebook", *command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"tunebook {' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    seconds, kilobytes = done.stdout.split()
    return float(seconds), float(kilobytes) / 1024


def main() -> None:
    args = options(__doc__.splitlines()[0]).parse_args()
    problems, starts = (QUICK_PROBLEMS, QUICK_STARTS) if args.quick else (PROBLEMS, STARTS)
    here = device_of("cpu").environment()
    environment = Environment(hard={**here.hard, "threads": "2"}, soft=here.soft)
    result = Result(
        f"Looking at runs of {problems:,} problems, {TACTICS} tactics and {SAMPLES} samples of each",
        ("command", "median s", "longest s", "peak MB"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ["TUNEBOOK_CACHE_DIR"] = temporary
        location = Location.of(environment)
        location.runs.mkdir(parents=True)
        paths = [location.runs / f"winners.20260101_0000{number:02d}.jsonl" for number in range(RUNS)]
        for number, path in enumerate(paths):
            if number < 2:
                path.write_bytes(b"".join(map(encode_line, made_up(number, environment, problems))))
            else:  # other runs of another code: no restarts, whose verdicts would be read as well
                text = paths[0].read_bytes().replace(b'"version":"0"', b'"version":"%d"' % number, 1)
                path.write_bytes(text.replace(b"00:00:00", b"00:00:%02d" % number, 1))
        try:
            place_of(threads=2)
        except StoreError as error:
            raise SystemExit(str(error)) from error
        key = f"linear|N=1024,K=1024|bf16|M≤{2**3}"
        commands = {
            "diff A B": ["diff", str(paths[0]), str(paths[1])],
            "diff A B --json": ["diff", str(paths[0]), str(paths[1]), "--json"],
            "show A": ["show", str(paths[0])],
            "show A --problem": ["show", str(paths[0]), "--problem", key],
            f"history ({RUNS} runs)": ["history"],
            "history --op": ["history", "--op", "linear"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(starts):
            for name, command in random.sample(sorted(commands.items()), len(commands)):
                found[name].append(measured(command, home))
        size = paths[0].stat().st_size / 1e6
    for name, values in found.items():
        seconds, megabytes = [s for s, _ in values], max(m for _, m in values)
        middle = statistics.median(seconds)
        result.rows.append((name, f"{middle:.2f}", f"{max(seconds):.2f}", f"{megabytes:.0f}"))
        short = name.split(" (")[0].replace(" A B", "").replace(" A", "").replace(" --", "_")
        result.figures |= {f"{short}_s": middle, f"{short}_mb": megabytes}
        result.goals |= {f"{short}_s": ("<=", LIMIT_S), f"{short}_mb": ("<=", LIMIT_MB)}
    result.notes.append(f"each run file is {size:.0f} MB; {starts} starts of each command, in a new order each time")
    finish(result, args, environment.hard | environment.soft)


if __name__ == "__main__":
    main()
