"""The default budget against a long one: does it keep its time, and how much of the long tuning's gain does it reach?

Both plans are compared on the same model object in one process: default, short plan and long plan, interleaved in random
order over the phases. The share of the gain is (default - short) / (default - long), each the sum over phases of the
median log step time, with an interval by a bootstrap over rounds.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _common import Result, finish, options

from tunebook.devices import device_of
from tunebook.engine import ModelRunner, requests
from tunebook.engine.models import load

SHARE_GOAL = 0.95


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="smollm2-moe")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budgets", type=float, nargs=2, default=(120.0, 600.0))
    args = parser.parse_args()
    if args.quick:
        args.model, args.rounds, args.budgets = "tiny-moe", 6, (10.0, 20.0)
    runners: dict[str, ModelRunner] = {}
    spent: dict[str, float] = {}
    left_out: dict[str, int] = {}
    wanted = requests()
    with tempfile.TemporaryDirectory() as place:
        for name, budget in zip(("short", "long"), args.budgets, strict=True):
            runner = ModelRunner(load(args.model), threads=args.threads)
            start = time.perf_counter()
            report = runner.autotune(cache=Path(place) / f"{name}.json", budget_s=budget, wanted=wanted)
            spent[name], left_out[name] = time.perf_counter() - start, report.outcome.left_out
            runners[name] = runner
        seconds = compare(runners, wanted, args.rounds)
        environment = device_of("cpu").environment()
    totals = {name: np.array([seconds[r.__str__()][name] for r in wanted]) for name in ("default", "short", "long")}
    share = gain_share(totals)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        picks = rng.integers(0, args.rounds, args.rounds)
        draws.append(gain_share({name: values[:, picks] for name, values in totals.items()}))
    low, high = np.quantile(draws, (0.025, 0.975))
    result = Result(
        f"{args.model}: a budget of {args.budgets[0]:.0f} s against {args.budgets[1]:.0f} s",
        ("phase", "default ms", f"{args.budgets[0]:.0f} s plan, ms", f"{args.budgets[1]:.0f} s plan, ms"),
    )
    for index, request in enumerate(wanted):
        result.rows.append(
            (str(request), *(f"{np.median(totals[name][index]) * 1e3:.1f}" for name in ("default", "short", "long")))
        )
    result.figures = {
        "gain_share": share,
        "gain_share_low": float(low),
        "gain_share_high": float(high),
        "seconds_short": spent["short"],
        "seconds_long": spent["long"],
        "left_out_short": float(left_out["short"]),
        "left_out_long": float(left_out["long"]),
    }
    result.goals = {"gain_share": (">=", SHARE_GOAL), "seconds_short": ("<=", float(args.budgets[0]))}
    result.notes.append(f"share of the long tuning's gain: {share:.3f} [{low:.3f}, {high:.3f}] (95 %, over rounds)")
    result.notes.append("seconds are everything after loading: dummy runs, tuning, preparing, whole-model comparison")
    finish(result, args, {**environment.hard, **environment.soft})


def compare(runners: dict[str, ModelRunner], wanted: object, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Step seconds by phase and plan; the default runs on the short plan's model."""
    rng = random.Random(0)
    seconds: dict[str, dict[str, list[float]]] = {}
    for request in wanted:  # type: ignore[attr-defined]  # a tuple of PhaseRequest
        of_phase: dict[str, list[float]] = {"default": [], "short": [], "long": []}
        for number in range(rounds + 1):
            order = list(of_phase)
            rng.shuffle(order)
            for which in order:
                runner = runners["short" if which == "default" else which]
                runner.scope.switch(which != "default")
                start = time.perf_counter()
                runner.step(request)()
                if number:
                    of_phase[which].append(time.perf_counter() - start)
        seconds[str(request)] = of_phase
    return seconds


def gain_share(totals: dict[str, np.ndarray]) -> float:
    """How much of the long plan's gain the short one reaches, on the sum over phases of median log speed-ups."""
    logs = {name: np.median(np.log(values), axis=1).sum() for name, values in totals.items()}
    return float((logs["default"] - logs["short"]) / (logs["default"] - logs["long"]))


if __name__ == "__main__":
    main()
