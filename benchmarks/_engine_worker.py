"""Transformers, plain or tuned by tunebook, as a worker of end_to_end.py; and the measurement of the memory's bandwidth.

    python _engine_worker.py plain|tuned|probe

A step ends with the choice of the next token of each sequence, as it does in an engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _allocator  # noqa: F401 - sets how torch allocates
import numpy as np
from _end_to_end_fixed import best_fixed, candidates
from _end_to_end_floor import ReadProbe, experts_used, step_bytes
from _end_to_end_protocol import WARM, forget_peak, leave_folder, memory, serve, timed

from tunebook.devices import device_of
from tunebook.engine import ModelRunner, PhaseRequest, TuneReport, make_step, requests, set_threads
from tunebook.engine.models import LoadedModel, load
from tunebook.plan import Step
from tunebook.records import Tactic

WANTED = requests((1, 4, 16), (512,))
#: So many positions judge how exact a phase is.
JUDGED_POSITIONS = 256


def name_of(request: PhaseRequest) -> str:
    return f"decode_{request.batch}" if request.phase == "decode" else f"prefill_{request.tokens}"


class Plain:
    """A model on Transformers' own implementations."""

    def __init__(self) -> None:
        self.loaded: LoadedModel
        self._steps: dict[str, Callable[[], Any]] = {}

    def load(self, path: str, threads: int, dtype: str = "bfloat16") -> None:
        """Load a checkpoint, or a built-in model."""
        set_threads(threads)
        self.loaded = load(path, dtype=dtype)
        self._loaded()
        forget_peak()

    def _loaded(self) -> None:
        """Called once the model is there."""

    def save(self, path: str) -> None:
        """Write the model as a checkpoint."""
        self.loaded.model.save_pretrained(path)
        if self.loaded.tokenizer is not None:
            self.loaded.tokenizer.save_pretrained(path)

    def _make_step(self, request: PhaseRequest) -> Callable[[], Any]:
        return make_step(self.loaded.model, self.loaded.tokenizer, device_of("cpu"), request)

    def _logits(self, phase: str) -> Any:
        """One step of a phase: the logits of the last position, [batch, 1, vocabulary]."""
        if phase not in self._steps:
            (request,) = (request for request in WANTED if name_of(request) == phase)
            self._steps[phase] = self._make_step(request)
        return self._steps[phase]()

    def _choose(self, implementation: str) -> None:
        """Switch Transformers' experts implementation; an empty name leaves it."""
        if implementation:
            self.loaded.model.set_experts_implementation(implementation)

    def run(self, phase: str, steps: int, implementation: str = "") -> dict[str, Any]:
        """`steps` steps of a phase in a row, timed; see `timed`."""
        self._choose(implementation)
        warm = WARM if phase.startswith("prefill") else phase
        answer = timed(lambda: self._logits(phase).argmax(-1), lambda: self._logits(warm), steps)
        return {**answer, "tokens": answer["tokens"].flatten().tolist()}

    def prompts(self) -> dict[str, list[list[int]]]:
        """What each phase's sequences have read after its step, as token ids: context and new token, or a whole prompt."""
        read: list[list[list[int]]] = []

        def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            read.append(kwargs["input_ids"].tolist())

        found: dict[str, list[list[int]]] = {}
        self._steps.clear()
        hook = self.loaded.model.register_forward_pre_hook(note, with_kwargs=True)
        for request in WANTED:
            read.clear()
            self._logits(name_of(request))
            found[name_of(request)] = [[token for part in parts for token in part] for parts in zip(*read, strict=True)]
        hook.remove()
        return found

    def traffic(self, phase: str, sequences: int, context: int) -> dict[str, Any]:
        """How many experts each layer of a decode step uses, and the least bytes that the step reads."""
        used = experts_used(self.loaded.model, lambda: self._logits(phase))
        return {"experts": used, "bytes": step_bytes(self.loaded.model, used, sequences, context)}

    def write_logits(self, phases: Sequence[str], path: str) -> None:
        """Write the logits that each phase is judged by."""
        np.savez(path, **{phase: self._judged(phase) for phase in phases})

    def errors(self, path: str, implementation: str = "") -> dict[str, float]:
        """By phase the relative error (2-norm) of a position's logits against those in a file, the mean over positions."""
        self._choose(implementation)
        found: dict[str, float] = {}
        with np.load(path) as file:
            for phase in file.files:
                expected = file[phase]
                error = np.linalg.norm(self._judged(phase) - expected, axis=-1)
                found[phase] = float((error / np.linalg.norm(expected, axis=-1)).mean())
        return found

    def _judged(self, phase: str) -> Any:
        """Logits of `JUDGED_POSITIONS` positions, [positions, vocabulary]: one where an expert flips says little alone."""
        (request,) = (request for request in WANTED if name_of(request) == phase)
        decode = request.phase == "decode"
        texts = -(-JUDGED_POSITIONS // request.batch) if decode else 1
        found = []
        for seed in range(texts):
            keep = 1 if decode else min(JUDGED_POSITIONS, request.tokens)
            model, tokenizer = self.loaded.model, self.loaded.tokenizer
            logits = make_step(model, tokenizer, device_of("cpu"), request, seed=seed, keep=keep)()
            found.append(logits.float().numpy().reshape(-1, logits.shape[-1]))
        return np.concatenate(found)


class Tuned(Plain):
    """A model that tunebook is attached to."""

    def __init__(self) -> None:
        super().__init__()
        self.runner: ModelRunner

    def _loaded(self) -> None:
        self.runner = ModelRunner(self.loaded)

    def _make_step(self, request: PhaseRequest) -> Callable[[], Any]:
        return self.runner.step(request)

    def tune(self, cache: str, budget: float) -> dict[str, Any]:
        """Tune all phases into a new cache: what it cost, and what wins, by op."""
        report = self.runner.autotune(cache=Path(cache), budget_s=budget, wanted=WANTED)
        outcome = report.outcome
        return {
            **_told(report),
            "seconds": report.seconds["tune"],
            "tuned": outcome.tuned,
            "left_out": outcome.left_out,
            "winners": candidates(outcome.verdicts, outcome.weights),
        }

    def best_fixed(self, tried: dict[str, list[str]]) -> dict[str, str]:
        """By problem the best single tactic of its op among those tried."""
        steps = [Step(request.phase, request.batch, request.tokens, self.runner.step(request)) for request in WANTED]
        return best_fixed(self.runner, steps, tried)

    def serve(self, cache: str) -> dict[str, Any]:
        """Serve what a tuning left in a cache, as a warm start does."""
        return _told(self.runner.autotune(cache=Path(cache), policy="replay", wanted=WANTED))

    def install(self, tactics: dict[str, str]) -> None:
        """Serve these tactics, by problem."""
        self.runner.scope.install({key: Tactic.parse(name) for key, name in tactics.items()}, replace=True)


def _told(report: TuneReport) -> dict[str, Any]:
    """What a report says of the plan that serves."""
    plan = report.plan
    return {
        "bytes": plan.bytes if plan else 0,
        "plan": "none" if plan is None else "active" if plan.active else "slower than the default",
        "prepare": report.seconds["prepare"],
    }


def probe() -> dict[str, Callable[..., Any]]:
    """Handlers for the bandwidth alone."""
    reader = ReadProbe()

    def bandwidth() -> float:
        reader.bandwidth()  # wakes the threads
        return reader.bandwidth()

    return {"bandwidth": bandwidth}


def handlers(mode: str) -> dict[str, Callable[..., Any]]:
    if mode == "probe":
        return probe()
    engine = Tuned() if mode == "tuned" else Plain()
    names = (
        "load",
        "save",
        "run",
        "prompts",
        "traffic",
        "write_logits",
        "errors",
        "tune",
        "best_fixed",
        "serve",
        "install",
    )
    return {"memory": memory} | {name: getattr(engine, name) for name in names if hasattr(engine, name)}


if __name__ == "__main__":
    leave_folder()
    serve(handlers(sys.argv[1]))
