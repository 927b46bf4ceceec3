"""What is measured of a problem: who is offered, how each runner gets ready, and a sample by FlashInfer's own clock."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.integrations.flashinfer._names import FALLBACK, is_fallback, tactic_of
from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._problems import Found
from tunebook.measure import ConductError, failure
from tunebook.records import DEFAULT, Offered, Tactic


@dataclass(frozen=True)
class Entrant:
    """A tactic in FlashInfer's terms; also a `Candidate` of the race, which never calls it: FlashInfer does."""

    tactic: Tactic
    place: int
    value: Any
    bytes: int = 0
    calls: tuple[Callable[[], Any], ...] = ()
    flush: None = None

    @cached_property
    def name(self) -> str:
        return self.tactic.name


class Meter:
    """Takes the samples of one problem; as the race's `Conduct` it stands for the clock."""

    def __init__(self, package: Package, one: Found, tensors: list[Any]) -> None:
        self._tuner = package.tuner
        self._one, self._tensors = one, tensors
        self._taken = 0
        # as many input copies as FlashInfer would make, and the samples go round them
        config, self._batches = self._tuner.prepare_tactic_profile(tensors, one.config)
        single = {"profiling_repeat": 1} if hasattr(config, "profiling_repeat") else {}
        self._config = dataclasses.replace(config, **single)

    def look(self, entrant: Entrant) -> float:
        """Seconds of one call. Raises what the runner raises, and ValueError for a time that is none."""
        turn = self._taken % len(self._batches)
        self._taken += 1
        batches = self._batches[turn:] + self._batches[:turn]
        runner = self._one.runners[entrant.place]
        kwargs = self._one.kwargs
        milliseconds = self._tuner.profile_tactic(runner, self._tensors, entrant.value, self._config, batches, **kwargs)
        if not 0 < milliseconds < float("inf"):
            raise ValueError(f"its time, {milliseconds} ms, is none")
        return float(milliseconds) / 1e3

    def sample(self, candidate: Any, inner: int, offset: int) -> float:
        try:
            return self.look(candidate)
        except Exception as error:
            if candidate.tactic == DEFAULT:
                raise
            recover()
            raise ConductError(failure(error, "in the race")) from error

    def decided(self, left: Sequence[str], stopped: str | None) -> tuple[Sequence[str], str | None]:
        return left, stopped


@contextmanager
def single_calls(package: Package) -> Iterator[None]:
    """FlashInfer's tuner takes one call as a sample, without warm-up; what it was set to comes back afterwards."""
    tuner = package.tuner
    before = {name: getattr(tuner, name) for name in ("repeat", "warmup", "stream_delay_micro_secs")}
    # what hides the host's part of ten calls hides that of one in a tenth of the time
    tuner.stream_delay_micro_secs = before["stream_delay_micro_secs"] // max(1, before["repeat"])
    tuner.repeat, tuner.warmup = 1, 0
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(tuner, name, value)


def prepare(one: Found, tensors: list[Any], offered: dict[int, Any]) -> dict[int, Exception]:
    """Let each runner prepare itself as FlashInfer does before it profiles; who fails, by place, and how."""
    refused = {place: found for place, found in offered.items() if isinstance(found, Exception)}
    for place, tactics in offered.items():
        runner = one.runners[place]
        if place in refused or not (tactics or place == 0):
            continue
        if "do_preparation" not in inspect.signature(runner.forward).parameters:
            continue
        try:
            compiles = getattr(runner, "precompile_tactics", None)
            if compiles is None or not compiles(tensors, tactics, one.profile, **one.kwargs):
                runner(tensors, tactic=FALLBACK, do_preparation=True, **one.kwargs)
        except Exception as error:  # noqa: BLE001 - a runner's own code; what it raises is data
            recover()
            refused[place] = error
    return refused


def entrants(package: Package, one: Found, offered: dict[int, Any]) -> Iterator[Entrant]:
    """Everything that is offered, but for the default; of a runner that failed to say so, its fallback, to be rejected."""
    to_json, names = package.module._tactic_to_json, one.names
    seen = {DEFAULT.name}
    for place, tactics in offered.items():
        for value in [FALLBACK] if isinstance(tactics, Exception) else tactics:
            tactic = tactic_of(place, names[place], value, to_json)
            if tactic.name not in seen and not (place == 0 and is_fallback(value)):
                seen.add(tactic.name)
                yield Entrant(tactic, place, value)


def offered_of(package: Package, one: Found, tactics: Iterable[str]) -> dict[str, Offered]:
    """What each runner, and the default, offered; in which versions."""
    names: dict[str, list[str]] = {DEFAULT.runner: [DEFAULT.name], **{name: [] for name in one.names}}
    for name in tactics:
        names[Tactic.parse(name).runner].append(name)
    return {
        runner: Offered(version=package.stamp, space=hashlib.sha256("\n".join(sorted(of)).encode()).hexdigest()[:16])
        for runner, of in names.items()
    }


def recover() -> None:
    """Let no error of a failed kernel surface later, as FlashInfer's own tuner does."""
    import torch

    if torch.cuda.is_available():
        with suppress(Exception):
            torch.cuda.synchronize()
        with suppress(Exception):
            torch.cuda.cudart().cudaGetLastError()
