"""The model runner: owns a model, its attachment and its key-value caches; tunes through dummy runs, then serves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tunebook.devices import Device, device_of
from tunebook.dispatch import COUNTING, Scope
from tunebook.engine._attach import ATTACHABLE, attach
from tunebook.engine._generate import encode, stream
from tunebook.engine._mix import record_mix
from tunebook.engine._phases import PhaseName, PhaseRequest, merged, requests
from tunebook.engine._reload import Reloaded, reload
from tunebook.engine._replan import decide
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._resume import refuse_other, settings_of, terms_again, wanted_again
from tunebook.engine._stale import plan_key
from tunebook.engine._steps import make_step
from tunebook.engine._terms import Terms, terms_of
from tunebook.engine._threads import set_threads
from tunebook.engine._together import alike, options_of
from tunebook.engine._tune_model import tune_model
from tunebook.engine._warm import start_from
from tunebook.engine.models import LoadedModel, load
from tunebook.engine.models import Progress as LoadProgress
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.measure import Budget, MeasurementPolicy
from tunebook.records import Plan, Settings
from tunebook.store import Policy, ResolvedPolicy, read_run, resolve_policy
from tunebook.tuner import Isolate, Progress, Selection, Session

logger = logging.getLogger("tunebook.engine")


class ModelRunner:
    """Loads a model (a built-in name or a checkpoint directory), attaches it, and runs it.

    threads: how many threads torch uses from now on in this process; by default TUNEBOOK_THREADS, else as torch decides.
    ops: which operations are attached; leave "experts" out for a model whose experts cannot be.
    measurement: how the model will run, "eager" or "captured"; see `attach`.
    Raises ModelError for a model that cannot be loaded or attached.
    """

    def __init__(
        self,
        model: str | LoadedModel = "smollm2-moe",
        *,
        threads: int | None = None,
        ops: Sequence[str] = ATTACHABLE,
        measurement: MeasurementPolicy | str = MeasurementPolicy.EAGER,
        device: Device | None = None,
        progress: LoadProgress | None = None,
    ) -> None:
        set_threads(threads)
        self.device = device or device_of("cpu")
        self.loaded = load(model, progress=progress) if isinstance(model, str) else model
        self.ops = tuple(ops)
        self.attachment = attach(self.loaded.model, ops, measurement=measurement)
        self.plan: Plan | None = None
        self._steps: dict[PhaseRequest, Callable[[], Any]] = {}
        self._asked: tuple[str | Path | None, Selection, Terms] | None = None

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def scope(self) -> Scope:
        return self.attachment.scope

    def close(self) -> None:
        """Give the model its own forwards back and release prepared weights and key-value caches."""
        self._steps.clear()
        self.attachment.detach()

    def __enter__(self) -> ModelRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dummy_run(self, phase: PhaseName, batch_size: int = 1, tokens: int | None = None) -> Any:
        """One step on made-up but readable input, in inference mode, on the device's own stream.

        phase "decode" advances `batch_size` sequences by one token; "prefill" reads `tokens` tokens (128 by default) of
        each. Returns the logits of the last position, [batch_size, 1, vocabulary]. Real text is read where the model has a
        tokenizer, so that routing is the model's own.
        """
        if phase not in ("decode", "prefill"):
            raise UsageError(f"phase {phase!r} is neither decode nor prefill")
        length = 1 if phase == "decode" else 128 if tokens is None else tokens
        if batch_size < 1 or length < 1:
            raise UsageError(f"{phase} of {batch_size} sequences by {length} tokens: both are at least 1")
        return self.step(PhaseRequest(phase, batch_size, length))()

    def step(self, request: PhaseRequest) -> Callable[[], Any]:
        """The repeatable step of a phase; its key-value cache is kept for the next time."""
        if request not in self._steps:
            self._steps[request] = make_step(self.loaded.model, self.loaded.tokenizer, self.device, request)
        return self._steps[request]

    def should_autotune(
        self,
        *,
        cache: str | Path | None = None,
        policy: Policy | str | ResolvedPolicy | None = None,
        wanted: Sequence[PhaseRequest] | None = None,
        memory_limit: str | None = None,
        mix: str | Path | Mapping[str, float] | None = None,
        batch_invariant: bool = False,
    ) -> tuple[bool, str]:
        """Whether `autotune` with the same arguments would need a dummy run, and the reason in words."""
        terms = terms_of(self, memory_limit, mix, batch_invariant, None)
        return self._decide(self._session(cache, policy), tuple(wanted) if wanted is not None else requests(), terms)

    def _decide(self, session: Session, wanted: Sequence[PhaseRequest], terms: Terms) -> tuple[bool, str]:
        if session.policy is Policy.FRESH:
            return True, "cache reuse is off: everything is tuned afresh"
        stale, else_ = decide(self, session, wanted, terms)
        if session.policy is Policy.REPLAY:
            return False, "policy replay never tunes" + (f" ({stale})" if stale else "")
        return (True, stale) if stale else (False, else_)

    def autotune(
        self,
        *,
        cache: str | Path | None = None,
        policy: Policy | str | ResolvedPolicy | None = None,
        budget_s: float | None = None,
        wanted: Sequence[PhaseRequest] | None = None,
        selection: Selection | None = None,
        note: str = "",
        seed: int | None = None,
        continuing: bool = False,
        thorough: bool = False,
        memory_limit: str | None = None,
        mix: str | Path | Mapping[str, float] | None = None,
        batch_invariant: bool = False,
        isolate: Isolate | str | None = None,
        resume: str | Path | None = None,
        files: Sequence[str | Path] = (),
        group: object = None,
        progress: Progress | None = None,
    ) -> TuneReport:
        """Collect with dummy runs, tune, plan, prove on the whole model, publish; or start from the cache.

        Everything but loading and preparing weights shares `budget_s` (default TUNEBOOK_BUDGET_S). The returned report says
        what was done, with seconds; `plan` is what the model is now served with.

        memory_limit: what all weights may take while the plan serves, ``1.1x`` of the unattached model's or ``3GiB``; by
        default TUNEBOOK_MEMORY_LIMIT, else as in the cached plan, else 1.1x. A cached plan for another limit or mix is made
        anew of what is known, without measuring.
        mix: what the plan is weighted by: steps of phases (``"decode 1=100,prefill 512=1"``, or a mapping), "equal" for all
        phases alike, or a file that `record_mix` wrote; by default as in the cached plan, else "equal".
        batch_invariant: one result whatever the batch: each family of layers is served by tactics that give equal bits, and
        the plan serves even where it is slower than the default. Raises UsageError that names an op which cannot have that.
        isolate: which tactics are first run in a worker process: "unproven", "always" or "never"; by default TUNEBOOK_ISOLATE.
        resume: the run file of a tuning of this model that was interrupted. It goes on in that file, as it was asked for, and
        what the file holds is not measured again. Raises UsageError for another argument that contradicts it, StoreError for a
        run that cannot go on here.
        files: the Python files whose runners are offered, for the run file: `tunebook tune --resume` asks for them again.
        group: a process group of torch.distributed, each of whose ranks has this model and calls this: they share the work and
        hold the same verdicts and plan; the one at place 0 proves the plan and keeps the files. See docs/ranks.md. Raises
        RankError where another rank fails, dies or falls silent, and UsageError where it was started otherwise.
        """
        spent = timer(self.device)
        if resume is not None and group is not None:
            raise UsageError(f"resume={resume} with group=…: a run goes on in one process; leave one of the two out")
        if resume is not None:
            refuse_other(
                resume,
                read_run(resume).header,
                cache=cache,
                policy=policy,
                budget_s=budget_s,
                wanted=wanted,
                selection=selection,
                note=note,
                seed=seed,
                continuing=continuing,
                thorough=thorough,
                memory_limit=memory_limit,
                mix=mix,
                batch_invariant=batch_invariant,
                isolate=isolate,
            )
            session = Session.resume(resume, device=self.device, model=self.name, fingerprint=self.loaded.fingerprint)
            wanted, terms = wanted_again(session.settings), terms_again(session.settings)
            budget_s, selection = session.settings.budget_s, session.selection
            cache = session.location.cache if session.location.explicit else None
        else:
            wanted = tuple(wanted) if wanted is not None else requests()
            terms = terms_of(self, memory_limit, mix, batch_invariant, selection)
            budget_s = budget_s if budget_s is not None else envs.TUNEBOOK_BUDGET_S.get()
            session = self._session(
                cache,
                policy,
                selection=selection,
                note=note,
                seed=seed,
                continuing=continuing,
                thorough=thorough,
                isolate=isolate,
                settings=settings_of(self, budget_s, wanted, terms, files),
            )
        self._asked = cache, selection or Selection(), terms
        COUNTING.beside(self.scope.name, session.location)
        session.announce()
        if group is not None:
            session.join(group, options_of(self, terms, wanted, budget_s, session.isolate.value))
        report = TuneReport(model=self.name, session=session, why="", load_seconds=self.loaded.seconds)
        try:
            former = session.recall.plan_of(plan_key(self, terms))
            terms.check_phases(merged(wanted, former.requested if former else ()))
            (selection or Selection()).check({b.spec.name: b.spec for b in self.attachment.bindings.values()})
            total = Budget(budget_s, self.device)
            alike_ = alike(self, session)
            needed, report.why = True, f"{resume} goes on"
            if resume is None:
                needed, report.why = alike_._decide(session, wanted, terms)
            if session.ranks is not None:
                needed, report.why = session.ranks.any_of(needed, report.why)
            logger.info("autotune of %s: %s", self.name, report.why)
            if needed:
                with COUNTING.paused(self.scope.name):
                    tune_model(self, session, total, wanted, terms, report, progress)
            else:
                start_from(alike_, session, terms, report, progress)
                report.seconds["start"] = spent() - report.seconds["prepare"]
                session.outcome = report.outcome
                session.finish()
        except BaseException as error:  # an interruption, or a fault of the model's own: what was settled is kept
            session.interrupt(error)
            raise
        self.plan = report.plan
        return report

    def reload(self, cache: str | Path | None = None) -> Reloaded:
        """Read the cache again, and serve what others have published since: like `autotune` with the policy replay.

        Nothing is measured and nothing is written. By default it is the cache of the last `autotune`, under the same terms. A
        plan that serves stays where the cache holds none that can take its place. Call it between two steps of the model.
        """
        asked, selection, terms = self._asked or (None, Selection(), terms_of(self, None, None, False, None))
        policy = ResolvedPolicy(policy=Policy.REPLAY, why="reload", overruled=())
        session = self._session(cache if cache is not None else asked, policy, selection=selection)
        COUNTING.beside(self.scope.name, session.location)
        return reload(self, session, terms)

    def record_mix(self, path: str | Path) -> AbstractContextManager[None]:
        """Count the calls of the block by problem and add them to a file, which `autotune(mix=…)` takes."""
        return record_mix(self, path)

    def _session(
        self,
        cache: str | Path | None,
        policy: Policy | str | ResolvedPolicy | None,
        *,
        selection: Selection | None = None,
        note: str = "",
        seed: int | None = None,
        continuing: bool = False,
        thorough: bool = False,
        isolate: Isolate | str | None = None,
        settings: Settings | None = None,
    ) -> Session:
        return Session(
            policy if isinstance(policy, ResolvedPolicy) else resolve_policy(True, policy),
            cache=None if cache is None else str(cache),
            device=self.device,
            selection=selection,
            model=self.name,
            note=note,
            seed=seed,
            continuing=continuing,
            thorough=thorough,
            isolate=isolate,
            fingerprint=self.loaded.fingerprint,
            settings=settings,
        )

    def generate(self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0) -> Iterator[str]:
        """The model's continuation of `prompt`, streamed. Raises ModelError for a model without a tokenizer."""
        inputs = encode(self.loaded.tokenizer, prompt, self.name)
        return stream(self.loaded.model, self.loaded.tokenizer, inputs, max_new_tokens, temperature)
