"""Hostile files: real caches, runs, pins, mixes and environments are damaged, read by what reads them, and served from.

What is counted: exceptions that are not errors of one line, and tactics served that the op does not offer for the problem.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _faults import Figure
from _faults_mutate import damaged

from tunebook.devices import device_of
from tunebook.dispatch import Scope
from tunebook.engine import ModelRunner
from tunebook.engine._mix import parse_mix
from tunebook.engine._phases import requests
from tunebook.engine._replan import decide
from tunebook.engine._report import TuneReport
from tunebook.engine._terms import Terms
from tunebook.engine._warm import start_from
from tunebook.engine.models import LoadedModel, fingerprint, random_model, tiny_config
from tunebook.errors import TunebookError
from tunebook.ops import OpSpec
from tunebook.plan import MemoryLimit
from tunebook.records import DEFAULT, Environment, Problem, Tactic
from tunebook.store import Location, pins_path, publish, read_any, read_pins, resolve_policy, update_pins
from tunebook.tuner import Session, available_runners

#: What is damaged, and how many of a hundred files are of that kind.
SHARES = {"cache": 50, "run": 18, "pins": 14, "mix": 10, "environment": 8}
#: One of so many caches is not only asked, but put into service whole: plan, layouts, prepared weights.
STARTED = 12
#: A load may take so long, in seconds: a limit of liveness, a hundred times what it takes.
SLOWEST_S = 5.0


class _Device:
    """This machine, asked once what it is."""

    def __init__(self) -> None:
        self._device = device_of("cpu")
        self._environment = self._device.environment()

    def environment(self) -> Environment:
        return self._environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class _Bench:
    """A tuned model, the files that its tuning left, and what they are read for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device: Any = _Device()
        model = random_model(tiny_config("mixtral"), "float32")
        loaded = LoadedModel(
            model=model, tokenizer=None, name="tiny", fingerprint=fingerprint(model), path=None, seconds=0.0
        )
        self.runner = ModelRunner(loaded, threads=1, device=self.device)
        made = folder / "made" / "winners.json"
        wanted = requests((1,), ())
        for budget in (8.0, 16.0, 32.0):  # on a busy machine the comparison on the whole model may not fit
            shutil.rmtree(made.parent, ignore_errors=True)
            report = self.runner.autotune(cache=made, policy="reuse", budget_s=budget, wanted=wanted, seed=0)
            if report.plan is not None and report.plan.verified:
                break
        with self.runner.record_mix(folder / "mix.json"):
            self.runner.dummy_run("decode", 1)
        tactics = {key: Tactic.parse(verdict.frontier[-1].tactic) for key, verdict in report.outcome.verdicts.items()}
        some = dict(list(tactics.items())[:4])
        update_pins(pins_path(made), {**some, "linear@M≤1": DEFAULT, "experts": DEFAULT})
        location = Location.of(self.device.environment())
        publish(location, self.device.environment(), report.outcome.verdicts, {})
        assert location.environment_file is not None
        assert report.session.run_path is not None
        assert report.plan is not None
        self.samples = {
            "cache": made.read_bytes(),
            "run": Path(report.session.run_path).read_bytes(),
            "pins": pins_path(made).read_bytes(),
            "mix": (folder / "mix.json").read_bytes(),
            "environment": location.environment_file.read_bytes(),
        }
        self.default = location
        self.specs: dict[str, tuple[OpSpec, str]] = {
            binding.spec.name: (binding.spec, binding.default_version)
            for binding in self.runner.attachment.bindings.values()
        }
        self.offered = {
            name: {"default", *(t.name for runner in available_runners(spec).values() for t in runner.combinations)}
            for name, (spec, _) in self.specs.items()
        }
        self.unoffered: list[str] = []
        path = folder / "cache0" / "cache.json"
        path.parent.mkdir()
        path.write_bytes(self.samples["cache"])
        stale, _ = decide(self.runner, self.session(path), (), Terms())
        assert not stale, f"the cache that is to be damaged does not serve: {stale}"

    def session(self, cache: Path) -> Session:
        return Session(resolve_policy(policy="reuse"), cache=str(cache), device=self.device, model="tiny")

    def check(self, key: str, name: str) -> None:
        """Count a tactic that serves a problem and is not offered for it: judged by its name alone."""
        problem = Problem.parse(key)
        spec, _ = self.specs[problem.op]
        tactic = Tactic.parse(name)
        fits = name == "default" or tactic.runner in spec.runners
        if name not in self.offered[problem.op] or not fits:
            self.unoffered.append(f"{key}: {name}")
        elif tactic != DEFAULT and spec.runners[tactic.runner].refusal(tactic, problem) is not None:
            self.unoffered.append(f"{key}: {name}, which it refuses")

    def cache(self, path: Path, rng: random.Random) -> None:
        """What a start does with a cache: look up, serve single verdicts, and decide on the plan, or serve it."""
        session = self.session(path)
        found, _ = session.recall.serving(self.specs)
        for key, members in found.items():
            for member in members:
                self.check(key, member.tactic)
        terms = Terms(limit=MemoryLimit.parse("1.05x")) if rng.random() < 0.3 else Terms()
        decide(self.runner, session, (), terms)
        if rng.randrange(STARTED) == 0:
            report = TuneReport(model="tiny", session=session, why="", load_seconds=0.0)
            start_from(self.runner, self.session(path), terms, report, None)
            self._check_scope(self.runner.scope)
        assert session.recall.contents is not None
        list(session.recall.contents.plans.values())  # the verdicts were all read
        assert all(str(miss).isprintable() for miss in session.recall.misses)

    def run(self, path: Path, rng: random.Random) -> None:
        """A run file is read for showing, and in a cache's stead."""
        found, _ = self.session(path).recall.serving(self.specs)
        for key, members in found.items():
            for member in members:
                self.check(key, member.tactic)
        read_any(path)

    def pins(self, path: Path, rng: random.Random) -> None:
        """Pins stand before the real cache."""
        beside = path.parent / "winners.json"
        if not beside.exists():
            beside.write_bytes(self.samples["cache"])
        found, _ = self.session(beside).recall.serving(self.specs)
        for key, members in found.items():
            for member in members:
                self.check(key, member.tactic)
        before = path.read_bytes()
        try:
            update_pins(path, {"linear": DEFAULT})
        except TunebookError:
            assert path.read_bytes() == before, "a refused file was changed"
            raise
        assert not read_pins(path).misses

    def mix(self, path: Path, rng: random.Random) -> None:
        mix = parse_mix(path, self.runner.loaded.fingerprint)
        session = self.session(self.folder / "made" / "winners.json")
        decide(self.runner, session, (), Terms(mix=mix, mix_given=True))

    def environment(self, path: Path, rng: random.Random) -> None:
        """It is for people; a publish reads it to see whether it is right, and mends it."""
        here = self.device.environment()
        location = Location(cache=path.parent / "none.json", runs=path.parent, environment_file=path, explicit=False)
        published = publish(location, here, {}, {})
        assert (published.problem, published.note) == (None, None), published
        assert path.read_bytes() == self.samples["environment"], "environment.json was not mended"

    def _check_scope(self, scope: Scope) -> None:
        if scope.tuned:
            for key, tactic in scope.tactics.items():
                self.check(key, tactic.name)
        for binding in scope.bindings:
            if binding.source is not None:
                name = binding.source.name
                if name not in self.offered[binding.spec.name]:
                    self.unoffered.append(f"{binding.spec.name}: {name}, as a source")


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("tunebook")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


def _of_one_line(error: BaseException) -> bool:
    return isinstance(error, TunebookError) and str(error).isprintable() and 0 < len(str(error)) < 3000


def mutated_files(
    count: int, seed: int = 0, *, told: Callable[[str, bytes, BaseException], None] | None = None
) -> list[Figure]:
    """Damage `count` files and read each; `told` gets the kind, the bytes and the exception of each traceback.

    A service's files lie in memory where the machine has such a place: the same calls read them.
    """
    rng = random.Random(seed)
    tracebacks: Counter[str] = Counter()
    slowest, slow = 0.0, ""
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(prefix="tunebook-files-", dir=memory if memory.is_dir() else None)
    with _quiet():
        try:
            bench = _Bench(Path(place))
            others = list(bench.samples.values())
            kinds = rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)
            for number, kind in enumerate(kinds):
                folder = Path(place) / f"{kind}{number % 8}"
                folder.mkdir(exist_ok=True)
                path = folder / {"run": "run.jsonl", "pins": "pins.toml"}.get(kind, f"{kind}.json")
                data = damaged(bench.samples[kind], others, rng)
                path.write_bytes(data)
                begun = time.process_time()
                try:
                    getattr(bench, kind)(path, rng)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                    if not _of_one_line(error):
                        tracebacks[f"{kind}: {type(error).__name__}: {str(error)[:120]}"] += 1
                        if told is not None:
                            told(kind, data, error)
                taken = time.process_time() - begun
                if taken > slowest:
                    slowest, slow = taken, kind
            bench.runner.close()
        finally:
            shutil.rmtree(place, ignore_errors=True)
    wrong = "; ".join(list(dict.fromkeys(tracebacks))[:3])
    served = "; ".join(bench.unoffered[:3])
    return [
        Figure(name="files_mutated", value=count, goal="as many as asked for", met=True),
        Figure(
            name="files_tracebacks",
            value=tracebacks.total(),
            goal=f"none: errors are one line{f' ({wrong})' if wrong else ''}",
            met=not tracebacks,
        ),
        Figure(
            name="files_unoffered_served",
            value=len(bench.unoffered),
            goal=f"none{f' ({served})' if served else ''}",
            met=not bench.unoffered,
        ),
        Figure(
            name="files_slowest_cpu_s",
            value=slowest,
            goal=f"under {SLOWEST_S:g} s of processor time ({slow})",
            met=slowest < SLOWEST_S,
        ),
    ]
