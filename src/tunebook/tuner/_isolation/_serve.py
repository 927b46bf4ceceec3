"""The worker's side: import the ops, map the memory, bind the tactic, run it on every case, tell what it gave."""

from __future__ import annotations

import importlib
import logging
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import torch

from tunebook.devices import device_of
from tunebook.dispatch import OPS, Binding
from tunebook.envs import envs
from tunebook.errors import TunebookError
from tunebook.measure import Case, Finding, Passed, Reference, check, failure, limit_memory
from tunebook.ops import OpSpec, Runner, load_file
from tunebook.records import Tactic
from tunebook.tuner._isolation._messages import (
    FIRST_CASE,
    PREPARING,
    Answer,
    Job,
    Load,
    Loaded,
    Right,
    Setting,
    Source,
    Unfit,
    Wrong,
)
from tunebook.tuner._isolation._values import Mapped, value_of, values_of


class Server:
    """Serves `Load` in the supervisor, and `Job` in its workers."""

    def __init__(self) -> None:
        envs.TUNEBOOK_ISOLATE.set("never")  # whatever an imported file does, it starts no worker,
        envs.TUNEBOOK_AUTOTUNE.set(False)  # and tunes nothing
        logging.getLogger("tunebook").setLevel(logging.ERROR)
        self._setting: Setting | None = None
        self._memory: dict[int, Mapped] = {}
        self._layers: dict[int, Binding] = {}
        self._references: dict[int, Reference] = {}  #: checksums of the constants, where writes to them cannot be seen
        self._cases: dict[int, tuple[Case, ...]] = {}

    def load(self, payload: bytes) -> bytes:
        load = msgspec.json.decode(payload, type=Load)
        failed = {}
        for source in load.sources:
            try:
                _import(source)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's module raises
                text = " ".join(str(error).split())
                shown = text if isinstance(error, TunebookError) else f"{type(error).__name__}: {text}"
                failed[source.name] = f"importing {source.path or source.name} failed: {shown}"[:400]
        for op, names in load.runners.items():
            for runner in (OPS[op].runners.get(name) for name in names) if op in OPS else ():
                with suppress(TunebookError):
                    _ = runner is None or runner.version  # before its first call, as the tuning has it
        return msgspec.json.encode(Loaded(failed=failed))

    def run(self, payload: bytes, fds: Sequence[int], at: Callable[[int], None]) -> bytes:
        job = msgspec.msgpack.decode(payload, type=Job)
        with torch.inference_mode():
            try:
                ready = self._ready(job, fds)
            except Exception as error:  # noqa: BLE001 - nothing of the tactic's has run yet
                ready = Unfit(why=f"its inputs cannot be made there: {type(error).__name__}: {error}")
            answer = ready if isinstance(ready, Unfit) else self._answer(job, *ready, at)
            return msgspec.msgpack.encode(answer)

    def _ready(self, job: Job, fds: Sequence[int]) -> tuple[Runner, Tactic, Binding, Reference] | Unfit:
        """All that a job needs, before anything of the tactic's is run; or why there is none."""
        for number in job.goes:
            self._memory.pop(number, None)
            self._layers.pop(number, None)
            self._references.pop(number, None)
            self._cases.pop(number, None)
        for number, fd in zip(job.comes, fds, strict=True):
            self._memory[number] = Mapped(fd)
        spec, tactic = OPS.get(job.op), Tactic.parse(job.tactic)
        runner = spec.runner_of(tactic) if spec is not None else None
        if spec is None or runner is None:
            what = f"runner {tactic.runner}" if spec is not None else f"op {job.op}"
            return Unfit(why=f"importing its module does not declare the {what}; declare it at the module's top level")
        if runner.version != job.version:
            return Unfit(
                why=f"its version is {job.version} here and {runner.version} in the worker process; "
                "give it a version of its own, version=…, or do not change it while it runs"
            )
        self._set(job.setting)
        return runner, tactic, self._layer(job, spec), self._reference(job)

    def _answer(
        self,
        job: Job,
        runner: Runner,
        tactic: Tactic,
        layer: Binding,
        reference: Reference,
        at: Callable[[int], None],
    ) -> Answer:
        at(PREPARING)
        where = "preparing weights"
        try:
            limit_memory(job.memory)
            try:
                call = _limited(layer.bound(tactic))
            finally:
                limit_memory(None)
            where = ""

            def before(number: int) -> None:
                nonlocal where
                where = job.cases[number % len(job.cases)].label
                at(FIRST_CASE + number)
                limit_memory(job.memory)

            found = check(call, reference, device_of(job.device), before=before)
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; what a call raises is found by `check`
            found = failure(error, where)
        except BaseException as error:  # noqa: BLE001 - in the tuning's own process it would have ended that
            shown = f"{type(error).__name__}({error})"
            found = Finding("crash", f"{where}: it raises {shown}, which would end the process")
        finally:
            limit_memory(None)
        if isinstance(found, Passed) and job.layer not in self._references and self._memory[job.layer].changed():
            found = Finding("correctness", "the weights were changed by the call")
        self._keep(layer, runner.layout_of(tactic), job.keep)
        if isinstance(found, Passed):
            return Right(error=found.error, seconds=found.seconds)
        return Wrong(reason=found.reason, detail=found.detail)

    def _set(self, setting: Setting) -> None:
        if setting == self._setting:
            return
        self._setting = setting
        torch.set_num_threads(setting.threads)
        torch.set_float32_matmul_precision(setting.precision)
        torch.set_default_dtype(getattr(torch, setting.dtype))

    def _layer(self, job: Job, spec: OpSpec) -> Binding:
        if job.layer not in self._layers:
            constants = values_of(job.constants, self._memory[job.layer])
            self._layers[job.layer] = Binding(spec, constants)
            _read(constants)
            if job.device != "cpu" or not self._memory[job.layer].told:
                self._references[job.layer] = Reference.of((), constants)
        return self._layers[job.layer]

    def _reference(self, job: Job) -> Reference:
        if job.problem not in self._cases:
            memory = self._memory[job.problem]
            agree = OPS[job.op].agree
            self._cases[job.problem] = tuple(
                Case(values_of(case.args, memory), value_of(case.expected, memory), case.label, case.seconds, agree)
                for case in job.cases
            )
        constants = self._references.get(job.layer) or Reference((), (), ())
        return replace(constants, cases=self._cases[job.problem])

    def _keep(self, layer: Binding, layout: str, keep: int) -> None:
        """Prepared weights stay for the other problems of a layer while they fit; then those of this call alone, if they do."""
        if sum(known.prepared.bytes for known in self._layers.values()) <= keep:
            return
        for known in self._layers.values():
            known.prepared.keep_only({layout} if known is layer and layer.prepared.bytes_of(layout) <= keep else ())


def _read(values: Sequence[Any]) -> None:
    """Have the memory mapped before anything is timed."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.numel():
            value.view(torch.uint8).sum() if value.is_contiguous() else value.sum()


def _limited(call: Callable[..., Any]) -> Callable[..., Any]:
    """The memory limit ends with the call: comparing its output is no need of the tactic's."""

    def run(*args: Any) -> Any:
        try:
            return call(*args)
        finally:
            limit_memory(None)

    return run


def _import(source: Source) -> None:
    if not source.main:
        if source.path:
            load_file(source.path)
        else:
            importlib.import_module(source.name)
        return
    if not hasattr(
        sys.modules.get("__mp_main__"), "__file__"
    ):  # as multiprocessing does where it starts a process anew
        module = types.ModuleType("__mp_main__")
        if source.path:
            module.__dict__.update(runpy.run_path(source.path, run_name="__mp_main__"))
        else:
            module.__dict__.update(runpy.run_module(source.name, run_name="__mp_main__", alter_sys=True))
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module
