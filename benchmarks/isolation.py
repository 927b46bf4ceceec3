"""What first runs in a worker process cost a tuning: the same tuning of a model with and without them, in turns.

Both tune afresh, with the same seed, what one dummy run collected, without an end of the budget, so that each takes what it
takes. The order is turned round each time. Counted too: first runs, workers, and what of it all dispatch knows (nothing).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _common import Result, finish, options

import tunebook
from tunebook.dispatch import collecting
from tunebook.engine import ModelRunner, requests
from tunebook.stats import median_interval
from tunebook.store import resolve_policy
from tunebook.tuner import Collection, Selection, Session

MODES = ("never", "unproven")
LIMIT = 0.15


def collect(runner: ModelRunner, decode: tuple[int, ...], prefill: tuple[int, ...]) -> Collection:
    """The calls of one step of each phase."""
    collection = Collection(runner.device)
    for request in requests(decode, prefill):
        step = runner.step(request)
        step()
        with collecting(collection):
            step()
    return collection


def tune(
    runner: ModelRunner, collection: Collection, mode: str, seed: int, ops: tuple[str, ...]
) -> tuple[float, Session]:
    for binding in runner.scope.bindings:
        binding.prepared.clear()
    gc.collect()
    selection = Selection(ops=ops)
    session = Session(resolve_policy(True, "fresh"), device=runner.device, selection=selection, seed=seed, isolate=mode)
    begun = time.perf_counter()
    session.tune(collection, None)
    return time.perf_counter() - begun, session


def mentions() -> int:
    """Lines of dispatch that name anything of the isolation."""
    files = (Path(tunebook.__file__).parent / "dispatch").rglob("*.py")
    return sum(len(re.findall("isolat|worker", file.read_text(encoding="utf-8"))) for file in files)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="granite-1b-moe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, nargs="*", default=[16])
    parser.add_argument("--prefill", type=int, nargs="*", default=[])
    parser.add_argument("--op", nargs="*", default=[], help="tune these ops alone")
    args = parser.parse_args()
    if args.quick:
        args.model, args.rounds, args.decode, args.op = "tiny-moe", 2, [2], ["experts"]
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    runs, workers, spent, problems = 0, 0, 0.0, 0
    with tempfile.TemporaryDirectory() as place, ModelRunner(args.model, threads=args.threads) as runner:
        os.environ["TUNEBOOK_CACHE_DIR"] = place
        environment = runner.device.environment()
        collection = collect(runner, tuple(args.decode), tuple(args.prefill))
        for number in range(args.rounds):
            for mode in MODES if number % 2 == 0 else MODES[::-1]:
                took, session = tune(runner, collection, mode, number, tuple(args.op))
                seconds[mode].append(took)
                problems = session.outcome.tuned
                tally = session.first_runs
                runs, workers, spent = runs + tally.runs, workers + tally.workers, spent + tally.seconds
                print(f"round {number + 1}, {mode}: {took:.1f} s", file=sys.stderr, flush=True)
    result = Result(f"What first runs in a worker process cost, {args.model}", ("figure", "value"))
    for mode in MODES:
        result.rows.append((f"tuning, {mode}, median s", f"{np.median(seconds[mode]):.1f}"))
    ratios = [one / other - 1 for one, other in zip(seconds["unproven"], seconds["never"], strict=True)]
    interval = median_interval(ratios)
    result.rows.append(
        ("cost, share of the tuning [95 %]", f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]")
    )
    result.rows.append(("first runs a tuning", f"{runs / args.rounds:.0f}"))
    result.rows.append(("seconds of first runs a tuning, their checks included", f"{spent / args.rounds:.1f}"))
    result.rows.append(("workers a tuning", f"{workers / args.rounds:.1f}"))
    result.figures |= {"cost": interval.value, "mentions_in_dispatch": float(mentions())}
    result.goals |= {"cost": ("<=", LIMIT), "mentions_in_dispatch": ("<=", 0.0)}
    result.notes.append(
        f"{problems} problems, {args.rounds} pairs of tunings in turns; with few pairs the interval is their range"
    )
    finish(result, args, environment.hard | environment.soft)


if __name__ == "__main__":
    main()
