"""The fault scenarios of `make faults` at full length: publishing, kills, damaged files, bad tactics, dying ranks.

Takes about an hour on two processors; --quick runs each as often as the tests do. --only runs the scenarios named.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import Result, finish, options
from _faults import Figure

from tunebook.devices import device_of


def publishing(quick: bool) -> Iterable[Figure]:
    """16 processes, 250 publishes each to one cache, in 20 repetitions."""
    from _faults_publish import publishing as run

    return run(processes=16, publishes=25 if quick else 250, repetitions=1 if quick else 20, seed=0)


def publish_kills(quick: bool) -> Iterable[Figure]:
    """100 kills at named steps inside a publish."""
    from _faults_publish import kills as run

    return run(count=26 if quick else 100, seed=0)


def tuning_kills(quick: bool) -> Iterable[Figure]:
    """100 kills at random moments of a tuning, each of which is then resumed."""
    from _faults_kills import kills as run

    return run(20 if quick else 100, seed=0)


def files(quick: bool) -> Iterable[Figure]:
    """20,000 damaged files (100,000 at full length)."""
    from _faults_files import mutated_files as run

    return run(20_000 if quick else 100_000, seed=1)


def tactics(_: bool) -> Iterable[Figure]:
    """12 kinds of bad tactic in one tuning, and a tuning that is killed while one runs."""
    from _faults_tactics import bad_tactics, killed_tuning

    return [*bad_tactics(), *killed_tuning()]


def ranks(_: bool) -> Iterable[Figure]:
    """4 ranks, one killed at each of 8 stages."""
    from _faults_ranks import rank_figures

    with tempfile.TemporaryDirectory() as place:
        return rank_figures(Path(place))


SCENARIOS: dict[str, Callable[[bool], Iterable[Figure]]] = {
    "publishing": publishing,
    "publish_kills": publish_kills,
    "tuning_kills": tuning_kills,
    "files": files,
    "tactics": tactics,
    "ranks": ranks,
}


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--only", help=f"scenarios, separated by commas, of {', '.join(SCENARIOS)}")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else list(SCENARIOS)
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        parser.error(f"--only {unknown[0]}: there is no such scenario; there are {', '.join(SCENARIOS)}")
    result = Result("Faults, at length", ("scenario", "figure", "value", "goal", "met", "seconds"))
    missed = 0
    for name in wanted:
        start = time.monotonic()
        figures = list(SCENARIOS[name](args.quick))
        seconds = f"{time.monotonic() - start:.0f}"
        for figure in figures:
            _, _, value = str(figure).rpartition(" ")
            result.rows.append((name, figure.name, value, figure.goal, "yes" if figure.met else "NO", seconds))
            missed += not figure.met
            print(figure, "" if figure.met else f"MISSED, goal: {figure.goal}", flush=True)
    finish(result, args, device_of("cpu").environment().hard)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
