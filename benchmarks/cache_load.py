"""Loading a cache: what a start pays before it is served, and how that grows with the number of verdicts.

Each load is a process of its own, as a start is, so that nothing is warm but the file in the page cache. A load is reading
and checking the file (`read`), then looking up one plan and the verdicts of its problems (`look up`), each of which is
validated there. `every entry` is what `tunebook show` and a publish pay on top of it. Sizes are interleaved, in a new order
each round.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import Result, finish, options

from tunebook.devices import device_of
from tunebook.records import Dim, Environment, Member, Offered, Plan, Problem, Rejected, Tactic, Verdict
from tunebook.stats import Interval, median_interval
from tunebook.store import MAX_CACHE_BYTES, Location, publish

SIZES = (100, 1_000, 10_000, 30_000)
LOADS = 25
QUICK_LOADS = 3
#: As many problems as a large model has, or all where there are fewer.
LOOKED_UP = 300
FINGERPRINT = "0951527fb134f695-e711381f"
LIMIT_MS = 60.0
GROWTH_LIMIT = 1.3

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OFFERED = {
    "default": Offered(version="transformers grouped_mm 5.23.0", space=""),
    "onednn": Offered(version="50ce185266b4", space="8fc131d03251"),
    "torch": Offered(version="3a36e1df709a", space="a2038b4ff7bf"),
}
ALGORITHMS = ("padded_bmm", "loop", "loop_columns", "grouped")
REJECTED = (
    Rejected(tactic="flashinfer", reason="unavailable", detail="needs CUDA with compute capability ≥ 9.0; none here"),
    Rejected(tactic="torch[algorithm=batched_mm]", reason="memory", detail="would take 3.2 GB, 1.1 GB are free"),
    Rejected(tactic="onednn[batch_hint=256]", reason="correctness", detail="row 3 is off by 0.21, 0.05 is tolerated"),
)

CHILD = """
import sys, time
from tunebook.records import Environment
from tunebook.store import read_cache
import json

path, hard, fingerprint = sys.argv[1:]
environment = Environment(hard=json.loads(hard))
times = [time.perf_counter()]
contents = read_cache(path, environment)
times.append(time.perf_counter())
found = [contents.verdicts.get(key) for key in contents.plans[fingerprint].tactics]
times.append(time.perf_counter())
count = len(contents.verdicts)
times.append(time.perf_counter())
assert all(found) and not contents.misses, contents.misses
print(json.dumps([count, *((after - before) * 1e3 for before, after in zip(times, times[1:]))]))
"""


def verdict(number: int, rng: random.Random) -> Verdict:
    """One of `number` = 0, 1, …: the layers of `experts` and `linear` in turn, ten buckets each."""
    layer, bucket = divmod(number, len(BUCKETS))
    dims = (Dim(name="M", size=BUCKETS[bucket]),)
    width = str(128 * (1 + layer // 2))
    if layer % 2:
        problem = Problem(op="linear", attrs=(("N", width), ("K", "1024")), dtypes=("bf16",), dims=dims)
    else:
        attrs = (("E", "32"), ("K", "8"), ("H", width), ("I", "512"))
        problem = Problem(op="experts", attrs=attrs, dtypes=("bf16", "scores:fp32"), dims=dims)
    hints = rng.sample((8, 16, 32, 64), 2)
    others = [
        *(Tactic(runner="onednn", params=(("batch_hint", hint),)) for hint in hints),
        *(Tactic(runner="torch", params=(("algorithm", name), ("run", 8))) for name in rng.sample(ALGORITHMS, 2)),
    ]
    raced = [Tactic(runner="default"), *rng.sample(others, rng.randint(2, 4))]
    winner, *rest = rng.sample(raced, len(raced))
    rejected = REJECTED[: rng.randint(0, 3)]
    speedup = 1.0 if winner.runner == "default" else rng.uniform(1.05, 3)
    return Verdict(
        problem=problem.key,
        winner=winner.name,
        status=rng.choice(("proven", "likely", "unresolved")),
        speedup=speedup,
        low=speedup * rng.uniform(0.85, 1),
        high=speedup * rng.uniform(1, 1.15),
        seconds=rng.uniform(2e-5, 5e-2),
        frontier=(Member(tactic=winner.name, ratio=1.0, low=1.0, high=1.0), *(member(other, rng) for other in rest)),
        offered=OFFERED,
        ties=tuple(other.name for other in rest[: rng.randint(0, 1)]),
        rejected=rejected,
        run="winners.20261122_194832.jsonl",
        rounds=rng.randint(3, 40),
        measured=rng.uniform(0.1, 10),
        note="its time was up; the last rounds were 4 % slower than the first",
        loss=rng.uniform(0, 0.01),
        space=len(raced) + len(rejected),
        seen=len(raced),
    )


def member(tactic: Tactic, rng: random.Random) -> Member:
    ratio = rng.uniform(1, 3)
    packed = tactic.runner == "onednn"
    return Member(
        tactic=tactic.name,
        ratio=ratio,
        low=ratio * rng.uniform(0.85, 1),
        high=ratio * rng.uniform(1, 1.15),
        bytes=1_572_864 if packed else 0,
        layout=f"onednn:packed-{tactic.kwargs['batch_hint']}" if packed else "",
    )


def write(path: Path, count: int, environment: Environment, rng: random.Random) -> int:
    """A cache of `count` verdicts and a plan for some of them, as a publish writes it. Returns its size in bytes."""
    verdicts = {one.problem: one for one in (verdict(number, rng) for number in range(count))}
    served = rng.sample(sorted(verdicts), min(LOOKED_UP, count))
    tactics = {key: verdicts[key].winner for key in served}
    plan = Plan(model="synthetic", fingerprint=FINGERPRINT, tactics=tactics, requested=("decode 16", "prefill 512"))
    published = publish(Location.of(environment, path), environment, verdicts, {FINGERPRINT: plan})
    if published.problem:
        raise SystemExit(published.problem)
    return path.stat().st_size


def load(path: Path, count: int, environment: Environment) -> list[float]:
    """Milliseconds of reading, of looking up, and of reading every entry after that, in a new process."""
    command = [sys.executable, "-c", CHILD, str(path), json.dumps(environment.hard), FINGERPRINT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found, *times = json.loads(done.stdout)
    if found != count:
        raise SystemExit(f"{found} verdicts were read of {count}")
    return [float(value) for value in times]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--loads", type=int, default=LOADS, help="loads of each size, a process each")
    args = parser.parse_args()
    loads = QUICK_LOADS if args.quick else args.loads
    environment, rng = device_of("cpu").environment(), random.Random(3)
    times: dict[int, list[list[float]]] = {count: [] for count in SIZES}
    with tempfile.TemporaryDirectory() as place:
        paths = {count: Path(place) / f"{count}.json" for count in SIZES}
        sizes = {count: write(path, count, environment, rng) for count, path in paths.items()}
        for path in paths.values():
            path.read_bytes()  # into the page cache
        for _ in range(loads):
            for count in rng.sample(SIZES, len(SIZES)):
                times[count].append(load(paths[count], count, environment))
    result = Result(
        "Loading a cache, ms, median [95 %]",
        ("verdicts", "file, MB", "read", "look up", "load", "load a verdict, µs", "every entry"),
    )
    for count in SIZES:
        read, look, every = ([one[at] for one in times[count]] for at in range(3))
        both = [one + other for one, other in zip(read, look, strict=True)]
        a_verdict = median_interval([value / count * 1e3 for value in both])
        row = (median_interval(read), median_interval(look), median_interval(both), a_verdict, median_interval(every))
        result.rows.append((f"{count:,}", f"{sizes[count] / 1e6:.1f}", *map(words, row)))
        result.figures[f"load_{count}_ms"] = row[2].value
        result.figures[f"read_{count}_ms"] = row[0].value
    result.goals["load_10000_ms"] = ("<=", LIMIT_MS)
    # Of reading alone: looking up as many entries in both would make the growth look smaller than it is.
    result.figures["growth_10000_30000"] = result.figures["read_30000_ms"] / 3 / result.figures["read_10000_ms"]
    result.goals["growth_10000_30000"] = ("<=", GROWTH_LIMIT)
    result.notes += [
        f"{loads} loads of each size, a process each, interleaved; the file is in the page cache",
        f"look up: a plan and the {LOOKED_UP} verdicts of its problems (all, where there are fewer), each validated in full",
        "load: read and look up; every entry: validating all the others as well, which a start does not do",
        "`growth_10000_30000` is the time that reading takes a verdict, of 30,000 over that of 10,000",
        "a verdict has a frontier of 3 to 5 members, 3 offered runners, 0 to 3 rejected tactics and a note",
        f"a cache is {MAX_CACHE_BYTES / 2**20:.0f} MiB at most",
    ]
    finish(result, args, environment.hard | environment.soft)


def words(interval: Interval) -> str:
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


if __name__ == "__main__":
    main()
