"""First runs: a tactic that is not proven on a problem is run there in a worker process before it is run in this one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from tunebook.devices import Device, device_of
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.measure import TIMEOUT_RATIO, Case, Finding, Host, HostError, Passed, Reference, Stage
from tunebook.ops import OpSpec, Runner
from tunebook.records import Problem, Tactic
from tunebook.tuner._isolation._imports import Imports, UnfitError
from tunebook.tuner._isolation._messages import Answer, Job, Right, Setting, Unfit, Wrong
from tunebook.tuner._isolation._mode import Isolate
from tunebook.tuner._isolation._shared import Sharing
from tunebook.tuner._isolation._values import UnshareableError

logger = logging.getLogger("tunebook.tuner")

SERVER = "tunebook.tuner._isolation._serve:Server"
#: Weights are prepared at this rate at least, in bytes a second, beside the seconds that every stage has.
PREPARE_RATE = 50e6
#: Of the memory for one call, what the worker keeps of prepared weights.
KEPT_SHARE = 0.5
#: Beside that memory, a call may take so much for what its first run sets up once: threads, tables, scratch.
SET_UP_BYTES = 512 << 20


@dataclass
class Tally:
    """What the first runs of a session did in worker processes."""

    runs: int = 0
    seconds: float = 0.0
    refused: int = 0
    workers: int = 0
    here: int = 0  #: tactics whose first run was in this process though it should not


@dataclass
class FirstRuns:
    """The first runs of one tuning. The worker is started by the first one, and ended by `close`.

    `memory` is what one call of a tactic may take, in bytes.
    """

    mode: Isolate
    device: Device
    memory: int
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._host = Host(SERVER, fork=self.device.name == "cpu")
        self._sharing = Sharing(self.memory)
        self._imports = Imports(self._host)
        self._off = ""  #: why no worker can be started, and none is tried again
        self._passed: set[tuple[str, str]] = set()
        self._hung: dict[tuple[str, str], str] = {}
        self._warned = False

    def expect(self, specs: Iterable[OpSpec]) -> None:
        """First runs of these ops' tactics will follow: the process that imports them starts, and nobody waits for it."""
        if self.mode is not Isolate.NEVER and self._known_device:
            self._imports.expect(specs)

    def run(
        self, problem: str, layer: Binding, reference: Reference, tactic: Tactic, *, proven: bool
    ) -> Finding | Passed | None:
        """What a tactic's first run gave, or None where it may take place in this process."""
        if self.mode is Isolate.NEVER:
            return None
        if self.mode is Isolate.UNPROVEN and (proven or (problem, tactic.name) in self._passed):
            return None
        begun = self.device.clock()
        family = Problem.parse(problem).family
        if (family, tactic.name) in self._hung:  # it is not waited for again at each size
            detail = f"it hung on {self._hung[family, tactic.name]}, and is not tried here"
            return Finding("timeout", detail, ran=False, harm=True)
        try:
            found = self._run(layer, reference, tactic)
        except (UnfitError, HostError, UnshareableError, OSError) as error:
            self._here(layer.spec.name, tactic, str(error))
            return None
        self.tally.runs += 1
        self.tally.seconds += self.device.clock() - begun
        if isinstance(found, Passed):
            self._passed.add((problem, tactic.name))
        else:
            self.tally.refused += 1
            if found.reason == "timeout" and found.harm:
                self._hung[family, tactic.name] = problem
        return found

    def close(self) -> None:
        """End the worker and give the shared memory back."""
        self._host.close()
        self._sharing.close()
        self.tally.workers += self._host.started
        if self._host.started:
            logger.info(
                "first runs in a worker process: %d, %d of them rejected, %d workers, %.1f s",
                self.tally.runs,
                self.tally.refused,
                self.tally.workers,
                self.tally.seconds,
            )

    def _here(self, op: str, tactic: Tactic, why: str) -> None:
        """A first run takes place in this process; said once a tuning."""
        self.tally.here += 1
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(
            level,
            "op %s, runner %s: first runs are not isolated, a crash would end this process: %s (--isolate never, or "
            "TUNEBOOK_ISOLATE=never, takes that for granted)",
            op,
            tactic.runner,
            why,
        )

    def _run(self, layer: Binding, reference: Reference, tactic: Tactic) -> Finding | Passed:
        runner = layer.spec.runner_of(tactic)
        assert runner is not None
        if self._off:
            raise UnfitError(self._off)
        if not self._known_device:
            raise UnfitError(f"a worker process cannot measure on {self.device.name} as this one does")
        self._imports.need(layer.spec, runner)
        fresh = self._ready() == 0
        found = self._attempt(layer, reference, runner, tactic)
        if isinstance(found, Finding) and found.reason != "timeout" and not fresh:
            # What ran before it in this worker may have spoilt its memory: judged is who fails alone.
            self._host.replace()
            self._ready()
            found = self._attempt(layer, reference, runner, tactic)
        if isinstance(found, Finding) and found.reason != "timeout":
            self._host.replace()
        return found

    def _ready(self) -> int:
        """Have a worker; how many jobs it has done. Where none can be started, none is tried again."""
        try:
            return self._host.ready()
        except HostError as error:
            self._off = str(error)
            raise

    def _attempt(self, layer: Binding, reference: Reference, runner: Runner, tactic: Tactic) -> Finding | Passed:
        weights, problem = self._sharing.layer(layer), self._sharing.problem(reference)
        comes, goes = self._sharing.lacking(self._host.started, (weights, problem))
        job = Job(
            op=layer.spec.name,
            tactic=tactic.name,
            version=runner.version,
            layer=weights.number,
            constants=weights.values,
            problem=problem.number,
            cases=problem.cases,
            comes=tuple(shared.number for shared in comes),
            goes=goes,
            memory=self._limit(layer) if self.device.name == "cpu" else None,
            keep=int(KEPT_SHARE * self.memory),
            device=self.device.name,
            setting=_setting(),
        )
        fds = [shared.memory.fd for shared in comes]
        got = self._host.run(msgspec.msgpack.encode(job), fds, _stages(layer, reference.cases))
        if isinstance(got, Finding):
            return got
        self._sharing.told(comes)
        try:
            answer: Answer = msgspec.msgpack.decode(got, type=Answer)
        except msgspec.DecodeError:
            return Finding("crash", "its worker's answer could not be read", harm=True)
        match answer:
            case Right(error=error, seconds=seconds):
                return Passed(error, seconds)
            case Wrong(reason=reason, detail=detail):
                return Finding(reason, detail, harm=reason in ("crash", "memory"))
            case Unfit(why=why):
                unfit = self._imports.unfit(layer.spec.name, tactic.runner, why)
                self._host.replace()  # it may have some of the memory only
                raise unfit

    def _limit(self, layer: Binding) -> int:
        """Bytes that a call may take in the worker, and preparing weights for it."""
        return self.memory + 2 * tensor_bytes(layer.constants) + SET_UP_BYTES

    @cached_property
    def _known_device(self) -> bool:
        try:
            return type(device_of(self.device.name)) is type(self.device)
        except UsageError:
            return False


def _stages(layer: Binding, cases: Sequence[Case]) -> list[Stage]:
    """How long a worker may be silent at each stage of its job.

    A case holds two calls, for the first may load or compile what the second has; each may take as long as `check` allows.
    """
    each = envs.TUNEBOOK_ISOLATE_TIMEOUT_S.get()
    longest = max((case.seconds for case in cases if case.seconds is not None), default=0.0)
    stages = [
        Stage("starting", each),
        Stage("preparing weights", each + tensor_bytes(layer.constants) / PREPARE_RATE),
    ]
    for case in cases if len(cases) > 1 else (*cases, *cases):
        seconds = case.seconds if case.seconds is not None else longest
        stages.append(Stage(case.label, each + 2 * TIMEOUT_RATIO * seconds))
    return stages


def _setting() -> Setting:
    import torch

    return Setting(
        threads=torch.get_num_threads(),
        precision=torch.get_float32_matmul_precision(),
        dtype=str(torch.get_default_dtype()).removeprefix("torch."),
    )
