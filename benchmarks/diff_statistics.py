"""What `tunebook diff` promises, on a real model: how often restarts are called different, and whether a slowdown is found.

Runs are fresh tunings of the same code, each in a process of its own. *Restarts*: they are compared in disjoint pairs, and every
problem that is called different is a false one; once as they lie (so that the noise between runs is estimated from them) and once
each pair by itself (so that it is assumed). *Slowed*: the winner of one problem is made a tenth slower on purpose, in the code,
before another fresh run; `diff --confirm` of an earlier run against it has to find that problem and to name that tactic.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import HERE, Result, finish, options

from tunebook.book import Diff, Source, diff
from tunebook.cli.diff import CONFIRM_BUDGET_S
from tunebook.devices import device_of
from tunebook.records import DEFAULT, Verdict

PAIRS, QUICK_PAIRS = 20, 1
BUDGET_S, QUICK_BUDGET_S = 30.0, 6.0
SLOWED_BY = 0.1
#: A winner is slowed where it is that much faster than the default: else the default serves instead, and no change is left.
WORTH = 1.3
#: And where a call takes so long, in seconds, that the few microseconds of slowing it are little of it.
LONG = 3e-5
MOST_FALSE = 0.05
LEAST_FOUND = 0.9


@dataclass(frozen=True)
class Bench:
    """How runs are made and compared."""

    home: Path
    model: str
    budget: float
    arguments: Sequence[str]
    cpu_clock: bool = False
    confirm_s: float = CONFIRM_BUDGET_S

    def command(self, *words: object, slowed: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TUNEBOOK_CACHE_DIR": str(self.home), "TUNEBOOK_LOG_LEVEL": "ERROR"}
        environment |= {"SLOWED": json.dumps({**slowed, "cpu_clock": self.cpu_clock})} if slowed else {}
        files = [HERE / "_cpu_clock.py"] * self.cpu_clock + [HERE / "_slower.py"] * (slowed is not None)
        command = [sys.executable, "-m", "tunebook", *map(str, words)]
        command += [word for file in files for word in ("--with", str(file))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
        return done

    def tune(self, note: str, slowed: dict[str, Any] | None = None) -> Path:
        words = ("tune", self.model, "--fresh", "--budget", self.budget, "--note", note, *self.arguments, "--json")
        return Path(json.loads(self.command(*words, slowed=slowed).stdout)["run"])

    def confirm(self, before: Path, after: Path, slowed: dict[str, Any]) -> dict[str, Any]:
        words = ("diff", before, after, "--confirm", "--budget", self.confirm_s, "--json")
        found: dict[str, Any] = json.loads(self.command(*words, slowed=slowed).stdout)
        return found


def alone(before: Path, after: Path) -> Diff:
    """The comparison of two runs without the others beside them."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = (Source.read(shutil.copy(path, folder)) for path in (before, after))
        return diff(one, other)


def worth_slowing(verdict: Verdict) -> bool:
    return verdict.winner != DEFAULT.name and verdict.speedup >= WORTH and verdict.seconds >= LONG


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=None, help=f"pairs of runs, by default {PAIRS}")
    parser.add_argument("--budget", type=float, default=None, help=f"seconds of each tuning, by default {BUDGET_S:g}")
    parser.add_argument("--only-runner", action="append", default=[], help="race only this runner; may be repeated")
    parser.add_argument(
        "--cpu-clock",
        action="store_true",
        help="count CPU time, of one thread: for a machine that others use meanwhile",
    )
    parser.add_argument("--keep", type=Path, help="where the runs stay; by default they go at the end")
    args = parser.parse_args()
    pairs = args.pairs or (QUICK_PAIRS if args.quick else PAIRS)
    budget = args.budget or (QUICK_BUDGET_S if args.quick else BUDGET_S)
    home = args.keep or Path(tempfile.mkdtemp())
    words = (
        "--threads",
        str(args.threads or 1),
        "--decode",
        "1,4",
        "--prefill",
        "8",
        "--op",
        "linear",
        "--op",
        "experts",
    )
    bench = Bench(home, "tiny-moe", budget, words, args.cpu_clock, QUICK_BUDGET_S if args.quick else CONFIRM_BUDGET_S)
    try:
        result = measure(bench, pairs)
    finally:
        if args.keep is None:
            shutil.rmtree(home, ignore_errors=True)
    environment = device_of("cpu").environment()
    finish(result, args, {**environment.hard, **environment.soft, "threads": str(args.threads or 1)})


def measure(bench: Bench, pairs: int) -> Result:
    rng = random.Random(0)
    runs = [bench.tune("restart") for _ in range(2 * pairs)]
    compared = beside = by_itself = flips = 0
    deviations: list[float] = []
    for before, after in zip(runs[::2], runs[1::2], strict=True):
        found, assumed = diff(Source.read(before), Source.read(after)), alone(before, after)
        compared += len(found.changes)
        beside += len(found.significant)
        by_itself += len(assumed.significant)
        flips += len(found.flipped)
        deviations.append(found.between.deviation)
        print(f"pair: {len(found.changes)} problems, {len(found.flipped)} flipped, different: {len(found.significant)}, "
              f"{len(assumed.significant)} by itself; noise {found.between.deviation:.1%}", flush=True)  # fmt: skip
    caught = named = others = tried = seen = 0
    for before in runs[::2]:
        verdicts = [verdict for verdict in Source.read(before).verdicts.values() if worth_slowing(verdict)]
        if not verdicts:
            print(f"{before.name}: no winner that is worth slowing", flush=True)
            continue
        chosen = rng.choice(sorted(verdicts, key=lambda verdict: verdict.problem))
        slowed = {"problem": chosen.problem, "tactic": chosen.winner, "by": SLOWED_BY}
        after = bench.tune("slowed", slowed)
        document = bench.confirm(before, after, slowed)
        tried += 1
        settled = {one["problem"]: one for one in document["confirmed"]}
        one = settled.get(chosen.problem, {})
        found_it = chosen.problem in document["different"]
        caught += found_it
        named += found_it and chosen.winner in one.get("detail", "")
        others += len(set(document["different"]) - {chosen.problem})
        seen += len(document["changes"])
        print(f"slowed {chosen.winner} on {chosen.problem}: {one.get('outcome')}, {one.get('detail')}; "
              f"others: {len(set(document['different']) - {chosen.problem})}", flush=True)  # fmt: skip
    result = Result(
        "diff: restarts that are called different, and slowdowns of a tenth that are found",
        ("what", "of", "count", "share"),
    )
    for what, of, count in (
        ("problems of restarts called different, with the noise estimated from restarts", compared, beside),
        ("the same, with the noise assumed", compared, by_itself),
        ("winners of restarts that flipped", compared, flips),
        ("slowed winners found by --confirm", tried, caught),
        ("and named", tried, named),
        ("other problems called different by --confirm", seen - tried, others),
    ):
        result.rows.append((what, str(of), str(count), f"{count / of:.1%}" if of else "-"))
    result.figures = {
        "false_share": beside / max(1, compared),
        "false_share_assumed": by_itself / max(1, compared),
        "found_share": named / max(1, tried),
        "other_share": others / max(1, seen - tried),
    }
    result.goals = {"false_share": ("<=", MOST_FALSE), "false_share_assumed": ("<=", MOST_FALSE)}
    result.goals["found_share"] = (">=", LEAST_FOUND)
    noise = sorted(deviations)[len(deviations) // 2]
    result.notes.append(
        f"{2 * pairs} runs of {bench.budget:g} s each; median noise between runs {noise:.1%} of a speed-up"
    )
    return result


if __name__ == "__main__":
    main()
