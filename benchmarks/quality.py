"""How good and how stable tuned choices are: tunebook against the protocols of FlashInfer and of Triton's do_bench.

Each of several processes measures, problem by problem, rounds of the truth before, between and after fresh tunings by all
three; a last one tunes beside a competing process. The raw data go to a file line by line: an interrupted run goes on
from it (the same --keep again), and --from makes the table of it again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import finish, options
from _quality_report import report, summarise
from _quality_worker import Plan, read_units, work

from tunebook.devices import device_of

FULL = {"processes": 5, "rounds": 120, "tunings": 2, "loaded": 2}
QUICK = {"processes": 2, "rounds": 12, "tunings": 1, "loaded": 1}


def main() -> None:
    args = arguments()
    if args.source:
        make_table(args, args.source)
        return
    plan = plan_of(args)
    with tempfile.TemporaryDirectory() as place:
        keep = args.keep or Path(place) / "quality.jsonl"
        if args.worker is not None:
            work(args.worker, plan, keep)
            return
        begin(keep, plan)
        measure(args, plan, keep)
        make_table(args, keep)


def arguments() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("--processes", type=int, help=f"processes of the quiet part, {FULL['processes']}")
    parser.add_argument("--rounds", type=int, help=f"truth rounds in each of them, {FULL['rounds']}")
    parser.add_argument("--tunings", type=int, help=f"fresh tunings in each, by each tuner, {FULL['tunings']}")
    parser.add_argument("--loaded", type=int, help=f"tunings beside a competing process, {FULL['loaded']}; 0: none")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="raw data, JSON Lines; what it holds is not measured again"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="measure nothing: the table of a kept file"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan:
    sizes = {name: value if getattr(args, name) is None else getattr(args, name)
             for name, value in (QUICK if args.quick else FULL).items()}  # fmt: skip
    return Plan(**sizes, quick=args.quick, threads=args.threads)


def begin(keep: Path, plan: Plan) -> None:
    """Write the header, or see that what the file holds was measured with the same plan and on the same machine."""
    environment = device_of("cpu").environment()
    problems = {problem.name: problem.tactics for problem in plan.problems}
    header = json.loads(json.dumps({"plan": asdict(plan), "problems": problems, "hard": environment.hard}))
    known, _ = read_units(keep)
    differing = [name for name in header if known and known.get(name) != header[name]]
    if differing:
        raise SystemExit(f"error: {keep} is of another run, its {' and '.join(differing)} differ; choose another file")
    if not known:
        keep.write_text(json.dumps(header | {"soft": environment.soft}) + "\n", encoding="utf-8")
        return
    text = keep.read_text(encoding="utf-8")
    keep.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")  # without the line that an interruption tore


def measure(args: argparse.Namespace, plan: Plan, keep: Path) -> None:
    """Run the processes one after another, with the time left."""
    units = plan.units()
    done = {(unit["process"], unit["problem"]) for unit in read_units(keep)[1]}
    left = len([unit for unit in units if unit not in done])
    total, finished, started = left, 0, time.perf_counter()
    for process in range(units[-1][0] + 1):
        if all(unit in done for unit in units if unit[0] == process):
            continue
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(process), "--keep", str(keep)]
        command += [part for name in FULL for part in (f"--{name}", str(getattr(plan, name)))]
        command += ["--quick"] if plan.quick else []
        command += ["--threads", str(plan.threads)] if plan.threads else []
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            for line in worker.stdout or ():
                finished += 1
                spent = time.perf_counter() - started
                ahead = spent / finished * (total - finished)
                part = "loaded" if process >= plan.processes else f"process {process + 1} of {plan.processes}"
                what = f"[{finished}/{total}] {part}: {line.strip()}, {spent / 60:.1f} min, about {ahead / 60:.1f} min left"
                print(what, file=sys.stderr, flush=True)
        finally:
            code = worker.wait()
        if code:
            raise SystemExit(f"error: the process for part {process + 1} ended with {code}; the same command goes on")


def make_table(args: argparse.Namespace, keep: Path) -> None:
    header, units = read_units(keep)
    if not header:
        raise SystemExit(f"error: {keep} holds no data")
    plan = Plan(**header["plan"])
    have = {(unit["process"], unit["problem"]) for unit in units}
    missing = [unit for unit in plan.units() if unit not in have]
    if missing:
        raise SystemExit(f"error: {keep} lacks {len(missing)} parts; --keep {keep} measures them")
    args.quick = plan.quick
    sys.argv[1:] = without_paths(sys.argv[1:])
    environment: dict[str, Any] = {**header["hard"], **header["soft"]}
    finish(report([summarise(problem, units, plan) for problem in plan.problems], plan), args, environment)


def without_paths(arguments: list[str]) -> list[str]:
    """The command line without where the raw data lie: that is a path of one machine."""
    kept, skip = [], False
    for argument in arguments:
        path = argument.partition("=")[0] in ("--keep", "--from")
        if not skip and not path:
            kept.append(argument)
        skip = path and "=" not in argument
    return kept


if __name__ == "__main__":
    main()
