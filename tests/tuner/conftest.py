"""A made-up machine, whose clock moves when a tactic works, and a laboratory of ops that work on it."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import Flush
from tunebook.dispatch import FREE, collecting
from tunebook.records import Environment, Scalar, Timed
from tunebook.store import Run, read_run, resolve_policy
from tunebook.tuner import Collection, Outcome, Progress, Session


class Machine:
    """A device whose clock moves when a tactic works."""

    name = "cpu"

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.free = 1 << 33
        self.quiet = False
        self.rng = random.Random(seed)

    def work(self, seconds: float, sigma: float | None = None) -> None:
        """Take so long: up to 1 % more, or with log-normal noise; while it is `quiet`, exactly so long."""
        noise = 1 + 0.01 * self.rng.random() if sigma is None else self.rng.lognormvariate(0, sigma)
        noise = 1.0 if self.quiet else noise
        self.now += seconds * noise

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.now += 1e-9

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def environment(self) -> Environment:
        return Environment(hard={"device": "made up"})

    def free_memory(self) -> int:
        return self.free

    def cache_bytes(self) -> int:
        return 0

    def flush(self) -> Flush:
        return Flush(0)

    def no_capture(self) -> str | None:
        return "made up"

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        raise AssertionError("nothing is captured here")


class Lab:
    """Ops on one machine. `calls` counts by op and tactic; `asked` is what progress named, in order; `held` and `peak` count
    prepared bytes that are alive."""

    def __init__(self, machine: Machine, cache: Path) -> None:
        self.machine = machine
        self.cache = cache
        self.ops: dict[str, Any] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.asked: list[str] = []
        self.held = self.peak = self.made = 0
        self.session: Session

    def op(
        self, name: str, seconds: float | Callable[[int], float], *, weight: int = 0, sigma: float | None = None
    ) -> None:
        """An op whose default takes `seconds` (of the size), with a weight of so many bytes."""
        take = seconds if callable(seconds) else lambda size: seconds

        def run(x: torch.Tensor) -> torch.Tensor:
            self.calls[name, "default"] += 1
            self.machine.work(take(x.shape[0]), sigma)
            return x * 2

        def with_weight(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return run(x)

        constants: dict[str, Any] = {"constants": ("w",)} if weight else {}
        made = tb.op(name, buckets={"x": {0: tb.pow2(name="M")}}, **constants)(with_weight if weight else run)
        self.ops[name] = (made, (torch.zeros(weight // 4),) if weight else ())

    def runner(
        self,
        op: str,
        name: str,
        space: Mapping[str, Sequence[Scalar]],
        seconds: Callable[..., float],
        *,
        sigma: float | None = None,
        right: Callable[..., bool] = lambda **params: True,
        layout: Callable[..., str] | None = None,
        version: str = "1",
        fails_after: int = 1 << 30,
    ) -> None:
        """A runner that takes `seconds(size, **params)`; with a weight on the op, it prepares a copy of that."""

        def run(x: torch.Tensor, *prepared: Any, **params: Scalar) -> torch.Tensor:
            tactic = f"{name}[{','.join(f'{key}={value}' for key, value in params.items())}]"
            self.calls[op, tactic] += 1
            if self.calls[op, tactic] > fails_after:
                raise RuntimeError("illegal instruction")
            self.machine.work(seconds(x.shape[0], **params), sigma)
            return x * (2 if right(**params) else 3)

        declared: dict[str, Any] = {"layout": layout} if layout else {}
        if self.ops[op][1]:
            declared["prepare"] = self._prepare
        self.ops[op][0].runner(name, space, version=version, **declared)(run)

    def _prepare(self, w: torch.Tensor, **params: Scalar) -> torch.Tensor:
        made, size = w.clone(), w.nbytes
        self.made += 1
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(made, self._released, size)
        return made

    def _released(self, size: int) -> None:
        self.held -= size

    def tune(
        self,
        calls: Mapping[str, Sequence[int]],
        budget: float | None,
        *,
        continuing: bool = False,
        thorough: bool = False,
        progress: Progress | None = None,
        seed: int = 0,
        policy: str | None = None,
        resume: str | None = None,
    ) -> Outcome:
        """A session over a call of each op at each size; counters then tell of the session alone.

        With `resume`, the run file of one that was interrupted, it goes on in that.
        """
        FREE.install({}, replace=True)
        self.session = (
            Session.resume(resume, device=self.machine)
            if resume is not None
            else Session(
                resolve_policy(True, policy),
                cache=str(self.cache),
                device=self.machine,
                seed=seed,
                continuing=continuing,
                thorough=thorough,
            )
        )
        collection = Collection(self.machine)
        self.machine.quiet = True  # so that weights are as declared
        with collecting(collection), torch.inference_mode():
            for name, sizes in calls.items():
                op, constants = self.ops[name]
                for size in sizes:
                    op(torch.ones(size, 3), *constants)
        self.machine.quiet = False
        self.calls.clear()
        self.asked.clear()

        def noted(done: int, total: int, what: str) -> None:
            assert 0 <= done <= total
            if what:
                self.asked.append(what)
            if progress is not None:
                progress(done, total, what)

        try:
            outcome = self.session.tune(collection, budget, noted)
        except KeyboardInterrupt as error:
            self.session.interrupt(error)
            raise
        self.session.publish(outcome)
        self.session.finish()
        return outcome

    def run(self) -> Run:
        assert self.session.run_path is not None
        return read_run(self.session.run_path)

    def samples(self, key: str, tactic: str) -> list[tuple[int, float]]:
        """Every sample of a tactic that the run file holds, with its round, in the order in which it was written."""
        trials = [line.trial for line in self.run().trials if line.problem == key]
        timed = [trial for trial in trials if isinstance(trial, Timed) and trial.tactic == tactic]
        return [pair for trial in timed for pair in zip(trial.rounds, trial.samples, strict=True)]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def lab(clean_ops: None, machine: Machine, tmp_path: Path) -> Lab:
    return Lab(machine, tmp_path / "cache.json")
