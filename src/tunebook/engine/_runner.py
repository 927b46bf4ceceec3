"""The model runner: owns a model, its attachment and its key-value caches; tunes through dummy runs, then serves."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunebook.devices import Device, device_of
from tunebook.dispatch import collecting, tensor_bytes
from tunebook.engine._attach import attach
from tunebook.engine._autotune import families_of
from tunebook.engine._generate import encode, stream
from tunebook.engine._phases import PhaseName, PhaseRequest, requests
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._steps import make_step
from tunebook.engine.models import LoadedModel, load
from tunebook.engine.models import Progress as LoadProgress
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.measure import Budget
from tunebook.plan import Choices, Step, extra_bytes, install, make, prepare, verify
from tunebook.records import Plan, Tactic
from tunebook.store import Policy, ResolvedPolicy, resolve_policy
from tunebook.tuner import Collection, Outcome, Progress, Selection, Session

logger = logging.getLogger("tunebook.engine")

#: The budget keeps this many default steps of every phase for the whole-model comparison, and at most this share of itself.
VERIFY_STEPS = 20
VERIFY_SHARE = 0.5


class ModelRunner:
    """Loads a model (a built-in name or a checkpoint directory), attaches it, and runs it.

    threads: how many threads torch uses from now on in this process; by default TUNEBOOK_THREADS, else as torch decides.
    Raises ModelError for a model that cannot be loaded or attached.
    """

    def __init__(
        self,
        model: str | LoadedModel = "smollm2-moe",
        *,
        threads: int | None = None,
        device: Device | None = None,
        progress: LoadProgress | None = None,
    ) -> None:
        set_threads(threads)
        self.device = device or device_of("cpu")
        self.loaded = load(model, progress=progress) if isinstance(model, str) else model
        self.attachment = attach(self.loaded.model)
        self.plan: Plan | None = None
        self._steps: dict[PhaseRequest, Callable[[], Any]] = {}

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def scope(self) -> Any:
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

    def should_autotune(self, session: Session, wanted: Sequence[PhaseRequest]) -> tuple[bool, str]:
        """Whether a dummy run is needed, and the reason in words."""
        if not envs.TUNEBOOK_AUTOTUNE.get():
            return False, "TUNEBOOK_AUTOTUNE is off"
        if session.policy is Policy.FRESH:
            return True, "cache reuse is off: everything is tuned afresh"
        stale = self._stale(session, wanted)
        if session.policy is Policy.REPLAY:
            return False, "policy replay never tunes" + (f" ({stale})" if stale else "")
        return (True, stale) if stale else (False, f"the cache {session.location.cache} answers everything")

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
        progress: Progress | None = None,
    ) -> TuneReport:
        """Collect with dummy runs, tune, plan, prove on the whole model, publish; or start from the cache.

        Everything but loading and preparing weights shares `budget_s` (default TUNEBOOK_BUDGET_S). The returned report says
        what was done, with seconds; `plan` is what the model is now served with.
        """
        wanted = tuple(wanted) if wanted is not None else requests()
        resolved = policy if isinstance(policy, ResolvedPolicy) else resolve_policy(True, policy)
        spent = timer(self.device)
        session = Session(
            resolved,
            cache=None if cache is None else str(cache),
            device=self.device,
            selection=selection,
            model=self.name,
            note=note,
            seed=seed,
        )
        (selection or Selection()).check({b.spec.name: b.spec for b in self.attachment.bindings.values()})
        total = Budget(budget_s if budget_s is not None else envs.TUNEBOOK_BUDGET_S.get(), self.device)
        needed, why = self.should_autotune(session, wanted)
        logger.info("autotune of %s: %s", self.name, why)
        report = TuneReport(model=self.name, session=session, why=why, load_seconds=self.loaded.seconds)
        if not needed:
            self._start_from(session, report, progress)
            report.seconds["start"] = spent() - report.seconds["prepare"]
            return report
        collection = self._collect(wanted, report, progress)
        verify_s = min(VERIFY_SHARE * total.left(), VERIFY_STEPS * report.step_seconds)
        outcome = session.tune(collection, total.left() - verify_s, progress)
        report.outcome, report.seconds["tune"] = outcome, outcome.seconds
        plan, families = self._plan(session, outcome, collection, report, wanted, progress)
        plan = self._verify(session, plan, wanted, total, report, progress)
        self._activate(plan)
        session.publish(outcome, plan)
        session.finish()
        report.plan = self.plan = plan
        return report

    def generate(self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0) -> Iterator[str]:
        """The model's continuation of `prompt`, streamed. Raises ModelError for a model without a tokenizer."""
        inputs = encode(self.loaded.tokenizer, prompt, self.name)
        return stream(self.loaded.model, self.loaded.tokenizer, inputs, max_new_tokens, temperature)

    def _stale(self, session: Session, wanted: Sequence[PhaseRequest]) -> str:
        """Why the cached plan does not answer, or an empty string."""
        plan = session.plan_of(self.loaded.fingerprint)
        if plan is None:
            return f"the cache {session.location.cache} holds no plan for {self.name}"
        lacking = [str(request) for request in wanted if str(request) not in plan.requested]
        if lacking:
            return f"the cached plan was not made for {', '.join(lacking)}"
        if set(plan.modules) != set(self.attachment.bindings):
            return "the cached plan is about other modules"
        by_family = {plan.modules[name]: binding for name, binding in self.attachment.bindings.items()}
        for key, name in plan.tactics.items():
            binding = by_family.get(key.rpartition("|")[0])
            if binding is None:
                return f"{key}: no module of this model has this problem"
            known = session.known(key, binding.spec, binding.default_version)
            if known is None or not known.complete:
                return f"{key}: " + ("; ".join(known.notes) if known else "the cache holds no verdict")
            if name not in [member.tactic for member in known.members]:
                return f"{key}: {name} is not a tactic that its verdict offers"
        return ""

    def _start_from(self, session: Session, report: TuneReport, progress: Progress | None) -> None:
        """Serve the cached plan; with REPLAY and no usable plan, whatever single entries can serve."""
        plan = session.plan_of(self.loaded.fingerprint)
        stale = self._stale(session, [])
        report.seconds["prepare"] = 0.0
        if plan is None or stale:
            logger.warning("nothing of the cache serves %s: %s", self.name, stale)
            self.scope.switch(False)
            return
        tactics = {key: Tactic.parse(name) for key, name in plan.tactics.items()}
        choices = Choices(tactics, dict(plan.layouts), plan.bytes, 0.0)
        families = {binding: plan.modules[name] for name, binding in self.attachment.bindings.items()}
        outcome = Outcome(seen=len(tactics), cached=len(tactics))
        for key in tactics:
            verdict = session.verdict_of(key)
            if verdict is not None:
                outcome.verdicts[key] = verdict
                outcome.members[key] = tuple(m for m in verdict.frontier if m.tactic == plan.tactics[key])
        install(self.scope, choices, families)
        if plan.active:
            spent = timer(self.device)
            prepare(self.scope, choices, families, progress)
            report.seconds["prepare"] = spent()
        self._activate(plan)
        report.outcome, report.plan, self.plan = outcome, plan, plan

    def _collect(self, wanted: Sequence[PhaseRequest], report: TuneReport, progress: Progress | None) -> Collection:
        spent = timer(self.device)
        collection = Collection(self.device)
        self.scope.switch(False)
        for done, request in enumerate(wanted):
            if progress:
                progress(done, len(wanted), f"dummy run: {request}")
            step = self.step(request)  # fills the key-value cache before calls are collected
            if request.phase == "decode":  # the first call of a shape builds what later ones reuse, and is no measure
                step()
            single = timer(self.device)
            with collecting(collection):
                step()
            report.step_seconds += single()
        self.scope.switch(True)
        report.seconds["collect"] = spent()
        return collection

    def _plan(
        self,
        session: Session,
        outcome: Outcome,
        collection: Collection,
        report: TuneReport,
        wanted: Sequence[PhaseRequest],
        progress: Progress | None,
    ) -> tuple[Plan, dict[Any, str]]:
        weights = tensor_bytes([list(self.loaded.model.parameters())])
        limit = extra_bytes(weights, self.device.free_memory() + self.attachment.prepared_bytes)
        choices = make(outcome, collection, self.scope, limit)
        families = families_of(self.scope, collection)
        spent = timer(self.device)
        install(self.scope, choices, families)
        held = prepare(self.scope, choices, families, progress)
        report.seconds["prepare"] = spent()
        report.limit_bytes, report.model_bytes = limit, weights
        plan = Plan(
            model=self.name,
            fingerprint=self.loaded.fingerprint,
            tactics={key: tactic.name for key, tactic in sorted(choices.tactics.items())},
            requested=tuple(str(request) for request in wanted),
            modules={name: families.get(binding, "") for name, binding in self.attachment.bindings.items()},
            layouts=dict(sorted(choices.layouts.items())),
            bytes=held,
            left_out=outcome.left_out,
            run=Path(session.run_path).name if session.run_path else "",
        )
        return plan, families

    def _verify(
        self,
        session: Session,
        plan: Plan,
        wanted: Sequence[PhaseRequest],
        total: Budget,
        report: TuneReport,
        progress: Progress | None,
    ) -> Plan:
        """The whole-model comparison; what is known of the very same plan from an earlier start is not measured again."""
        report.seconds["verify"] = 0.0
        former = session.plan_of(plan.fingerprint)
        if (
            former is not None
            and former.verified
            and (former.tactics, former.requested) == (plan.tactics, plan.requested)
        ):
            return former
        if all(name == "default" for name in plan.tactics.values()):
            return plan.replace(verified=True, active=True)
        spent = timer(self.device)
        steps = [Step(r.phase, r.batch, r.tokens, self.step(r)) for r in wanted]
        left = Budget(max(total.left(), 0.1), self.device)
        phases, overall = verify(steps, self.scope, self.device, left, random.Random(0), progress)
        report.seconds["verify"] = spent()
        return plan.replace(verified=True, active=overall.outcome != "slower", phases=phases, overall=overall)

    def _activate(self, plan: Plan) -> None:
        self.scope.switch(plan.active)
        if not plan.active:
            logger.warning(
                "the plan for %s is slower than the default on the whole model and is not activated; this is remembered",
                self.name,
            )
            for binding in self.scope.bindings:
                binding.prepared.clear()
                binding.forget()


def set_threads(threads: int | None) -> None:
    """Set torch's thread count: the argument, else TUNEBOOK_THREADS, else leave it. Raises UsageError below 1."""
    import torch

    chosen = threads if threads is not None else envs.TUNEBOOK_THREADS.get()
    if chosen is None:
        return
    if chosen < 1:
        raise UsageError(f"threads={chosen} is not a thread count; it is at least 1")
    if torch.get_num_threads() != chosen:
        torch.set_num_threads(chosen)
