"""A whole model, tuned, against Transformers' own `eager` and `grouped_mm`, interleaved; and the error of its logits.

The same model object runs all three: for a peer the attachment serves the defaults and Transformers' experts
implementation is switched; for tunebook the tuned plan serves. A phase's speed-up is paired with the better of the two
peers, which is the one with the smaller median over all rounds.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _common import Result, finish, options

from tunebook.devices import device_of
from tunebook.engine import ModelRunner, PhaseRequest, requests
from tunebook.engine.models import load
from tunebook.stats import ratio_interval

PEERS = ("eager", "grouped_mm")
GOALS = {"decode_1": 1.2, "decode_4": 1.3, "decode_16": 1.3, "prefill_512": 1.0}
ERROR_GOAL = 1.1
#: The phases whose logits are compared with fp32.
JUDGED = ("decode_16", "prefill_512")


def name_of(request: PhaseRequest) -> str:
    return f"decode_{request.batch}" if request.phase == "decode" else f"prefill_{request.tokens}"


def switch(runner: ModelRunner, which: str) -> None:
    """Serve the tuned plan (on Transformers' own default implementation), or a peer of Transformers."""
    runner.scope.switch(which == "tunebook")
    runner.loaded.model.set_experts_implementation("grouped_mm" if which == "tunebook" else which)


def measure(runner: ModelRunner, step: Callable[[], Any], rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """Seconds of a step by contestant: in each round all of them once, in random order, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in (*PEERS, "tunebook")}
    for number in range(rounds + 1):
        order = list(seconds)
        rng.shuffle(order)
        for which in order:
            switch(runner, which)
            start = time.perf_counter()
            step()
            if number:
                seconds[which].append(time.perf_counter() - start)
    return seconds


def logit_errors(runner: ModelRunner, wanted: Sequence[PhaseRequest]) -> dict[str, dict[str, float]]:
    """The relative error (2-norm) of each contestant's logits against the same weights and computation in fp32, by phase."""
    errors: dict[str, dict[str, float]] = {}
    with ModelRunner(load(runner.name, dtype="float32")) as exact:
        for request in wanted:
            expected = exact.step(request)().double()
            for which in (*PEERS, "tunebook"):
                switch(runner, which)
                got = runner.step(request)().double()
                of_phase = errors.setdefault(name_of(request), {})
                of_phase[which] = float((got - expected).norm() / expected.norm())
    return errors


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="granite-1b-moe")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--budget", type=float, default=120.0)
    args = parser.parse_args()
    if args.quick:
        args.model, args.rounds, args.budget = "tiny-moe", 6, 20.0
    wanted = requests((1, 4, 16), (512,))
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place, ModelRunner(args.model, threads=args.threads) as runner:
        report = runner.autotune(cache=Path(place) / "cache.json", budget_s=args.budget, wanted=wanted)
        timed = {request: measure(runner, runner.step(request), args.rounds, rng) for request in wanted}
        errors = logit_errors(runner, [request for request in wanted if name_of(request) in JUDGED])
        environment = device_of("cpu").environment()
    result = Result(
        f"End to end: {args.model}, bf16, against the better of Transformers' eager and grouped_mm",
        ("phase", "eager ms", "grouped_mm ms", "tunebook ms", "speed-up over the better", "rounds"),
    )
    for request, seconds in timed.items():
        name = name_of(request)
        best = min(PEERS, key=lambda peer: float(np.median(seconds[peer])))
        speedup = ratio_interval(seconds[best], seconds["tunebook"])
        result.figures |= {name: speedup.value, f"{name}_low": speedup.low, f"{name}_high": speedup.high}
        medians = [f"{float(np.median(seconds[which])) * 1e3:.1f}" for which in (*PEERS, "tunebook")]
        words = f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] over {best}"
        result.rows.append((name, *medians, words, str(args.rounds)))
        if name in GOALS and args.model == "granite-1b-moe":
            result.goals[name] = (">=", GOALS[name])
    for name, error in errors.items():
        worse = max(error[peer] for peer in PEERS)
        result.figures[f"{name}_error_ratio"] = error["tunebook"] / worse
        result.goals[f"{name}_error_ratio"] = ("<=", ERROR_GOAL)
        result.notes.append(
            f"logits of {name} against fp32, relative error: "
            + ", ".join(f"{which} {value:.5f}" for which, value in error.items())
        )
    outcome = report.outcome
    result.notes.append(
        f"tuned in {report.seconds['tune']:.0f} s of a {args.budget:.0f} s budget: {outcome.tuned} problems, "
        f"{outcome.left_out} left out; prepared weights {report.document()['plan']['bytes'] / 1e9:.2f} GB"
    )
    finish(result, args, {**environment.hard, **environment.soft, "threads": str(torch.get_num_threads())})


if __name__ == "__main__":
    main()
