"""A warm start: everything is answered by the cache, so nothing is profiled; how long it takes beside loading and preparing.

Each start is a process of its own, as in service. What is counted: problems tuned (0), seconds of `start` (reading the
cache, checking every entry, installing the plan), and `prepare` (packing weights), which is reported apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _common import Result, finish, options

from tunebook.stats import median_interval

LIMIT_S = 1.0


def tune(model: str, cache: Path, extra: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tunebook", "tune", model, "--cache", str(cache), "--json", *extra]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--model", default="granite-1b-moe")
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--budget", type=float, default=120.0)
    args = parser.parse_args()
    if args.quick:
        args.model, args.starts, args.budget = "tiny-moe", 2, 20.0
    extra = ["--budget", str(args.budget)] + (["--threads", str(args.threads)] if args.threads else [])
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache.json"
        cold = tune(args.model, cache, extra)
        warm = [tune(args.model, cache, extra) for _ in range(args.starts)]
    result = Result(f"Warm start of {args.model}", ("figure", "cold", "warm, median [95 %]"))
    result.figures["warm_tuned"] = float(max(document["problems"]["tuned"] for document in warm))
    result.goals["warm_tuned"] = ("<=", 0.0)
    result.rows.append(("problems tuned", str(cold["problems"]["tuned"]), f"{result.figures['warm_tuned']:.0f}"))
    for stage in ("load", "prepare", "collect", "tune", "verify", "start"):
        values = [document["seconds"][stage] for document in warm]
        interval = median_interval(values)
        result.figures[f"warm_{stage}_s"] = float(np.median(values))
        words = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        result.rows.append((f"{stage}, s", f"{cold['seconds'][stage]:.2f}", words))
    own = [sum(d["seconds"][stage] for stage in ("collect", "tune", "verify", "start")) for d in warm]
    result.figures["warm_own_s"] = float(np.max(own))
    result.goals["warm_own_s"] = ("<=", LIMIT_S)
    result.notes.append(
        "`warm_own_s` is the slowest start's time beside loading the model and preparing weights; "
        f"{args.starts} starts, a process each"
    )
    finish(result, args, cold["environment"]["hard"] | cold["environment"]["soft"])


if __name__ == "__main__":
    main()
