"""The report of `tunebook tune` for people: what was tuned, what won, what it buys on the whole model, and where it is kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook._figures import duration, size
from tunebook.cli._output import interval, say
from tunebook.cli._search_path import labels, say_origins
from tunebook.cli._tables import table
from tunebook.records import Effect, Phase, Plan, Tactic, Verdict

if TYPE_CHECKING:
    from tunebook.engine import TuneReport

#: The costliest problems are shown; `tunebook show` prints all.
SHOWN = 12
#: So many of the problems that were left out are named; `--json` names all.
NAMED = 3


def print_report(report: TuneReport, own: Collection[tuple[str, str]] = ()) -> None:
    """`own` are the (op, runner) pairs that the user's files added."""
    outcome, session = report.outcome, report.session
    say(f"{report.model}: {report.why}")
    say(
        f"{outcome.seen} problems: {outcome.cached} from the cache, "
        + (f"{outcome.resumed} settled before, " if outcome.resumed else "")
        + f"{outcome.tuned} tuned, "
        f"{outcome.kept_default} keep the default" + (f", {outcome.left_out} left out" if outcome.left_out else "")
    )
    say_origins(report.origins)
    _left_out(report)
    _seconds(report)
    if outcome.tuned:
        heavy = sorted(outcome.verdicts.values(), key=lambda v: -outcome.weights.get(v.problem, 0.0))
        print_verdicts(
            f"Verdicts (the {min(SHOWN, len(heavy))} costliest of {len(heavy)})", heavy[:SHOWN], report.origins
        )
    for runner in sorted(own):
        print_own(runner, list(outcome.verdicts.values()), report.plan)
    if report.plan is not None:
        print_plan(report.plan)
    say()
    if session.policy.value == "reuse":
        state = (
            "not written: " + outcome.not_published
            if outcome.not_published
            else "published"
            if outcome.published
            else "unchanged"
        )
        say(f"cache: {session.location.cache} ({state})")
    else:
        untouched = "neither read nor written" if session.policy.value == "fresh" else "read only"
        say(f"cache: {session.location.cache} ({untouched})")
    say(f"run:   {session.run_path or ('none, see below' if report.run_problem else 'none, nothing was tuned')}")
    if report.run_problem:
        say(f"problem: {report.run_problem}")


def _left_out(report: TuneReport) -> None:
    """Name what was not measured, now or in the tuning that the cache comes from; the costliest first."""
    keys = report.left_out
    if not keys:
        return
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    say(f"left out: {', '.join(keys[:NAMED])}{more}; `tunebook tune --continue` goes on with them")


def _seconds(report: TuneReport) -> None:
    parts = [f"load {report.load_seconds:.1f}"] + [f"{name} {value:.1f}" for name, value in report.seconds.items()]
    say("seconds: " + ", ".join(parts))


def print_verdicts(title: str, verdicts: Sequence[Verdict], origins: Mapping[str, Path | str] | None = None) -> None:
    """A line a problem: winner, speed-up over the default, status, and what that rests on.

    `origins`, the files of the search path by problem, are shown where there are any.
    """
    files = labels(origins or {})
    rows = [
        (
            v.problem,
            v.winner,
            duration(v.seconds) if v.seconds else "-",
            interval(v.speedup, v.low, v.high),
            v.status,
            str(v.rounds) if v.rounds else "-",
            duration(v.measured) if v.measured else "-",
            remark(v),
            *([files.get(v.problem, "")] if files else []),
        )
        for v in verdicts
    ]
    columns = ["problem", "winner", ">time", ">over default", "status", ">rounds", ">spent", "remark"]
    columns += ["from"] if files else []
    table(title, columns, rows)


def remark(verdict: Verdict) -> str:
    """What else there is to know of a verdict: ties, the loss to expect, how much of its space was seen, rejections."""
    ties = f"ties with {len(verdict.ties)}" if verdict.ties else ""
    loss = "" if verdict.status == "proven" or not verdict.loss else f"expected loss {math.expm1(verdict.loss):.1%}"
    told = "saw " in verdict.note  # the tuner's own remark says it too
    seen = f"saw {verdict.seen:,} of {verdict.space:,}" if 0 < verdict.seen < verdict.space and not told else ""
    rejected = f"{len(verdict.rejected)} rejected" if verdict.rejected else ""
    return ", ".join(part for part in (ties, loss, seen, rejected, verdict.note) if part)


def print_own(own: tuple[str, str], verdicts: Sequence[Verdict], plan: Plan | None) -> None:
    """How a runner of the user's did: per problem won, lost by how much, or rejected and why; and in the plan."""
    from tunebook.dispatch import OPS

    op, runner = own
    rows = []
    for verdict in sorted(verdicts, key=lambda v: v.problem):
        if verdict.problem.partition("|")[0] != op:
            continue
        mine = next((m for m in verdict.frontier if Tactic.parse(m.tactic).runner == runner), None)
        if mine is None:
            refused = [r for r in verdict.rejected if Tactic.parse(r.tactic).runner == runner]
            words = "; ".join(dict.fromkeys(f"{r.reason}: {r.detail}" for r in refused)) or "did not race"
            rows.append((verdict.problem, "rejected" if refused else "-", "", words))
        elif mine.tactic == verdict.winner:
            gain = f"{interval(verdict.speedup, verdict.low, verdict.high)} over the default"
            rows.append((verdict.problem, "won", mine.tactic, gain))
        else:
            slower = f"{interval(mine.ratio, mine.low, mine.high)} the time of {verdict.winner}"
            rows.append((verdict.problem, "tied" if mine.tactic in verdict.ties else "lost", mine.tactic, slower))
    why = OPS[op].runners[runner].requirement.reason()
    if why is not None:
        say(f"\nRunner {runner} of op {op} cannot run here: {why}")
        return
    table(f"Runner {runner} of op {op}", ("problem", "result", "tactic", "detail"), rows)
    if plan is not None:
        serves = sum(Tactic.parse(t).runner == runner for k, t in plan.tactics.items() if k.partition("|")[0] == op)
        whole = ""
        if plan.overall is not None:
            o = plan.overall
            whole = f"; the whole model: {interval(o.speedup, o.speedup_low, o.speedup_high)}, {o.outcome}"
        say(f"{runner} serves {serves} of {len(plan.tactics)} problems in the plan{whole}")


def print_plan(plan: Plan) -> None:
    """The whole-model comparison, what became of each op's gain, and the layouts with what they take."""
    table(
        "Whole model, default against tuned, interleaved (95 % intervals)",
        ("phase", ">batch", ">tokens", ">default ms", ">tuned ms", ">speed-up", "verdict"),
        [_phase(phase) for phase in plan.phases],
    )
    if plan.overall is not None:
        o = plan.overall
        say(f"overall: {interval(o.speedup, o.speedup_low, o.speedup_high)}, {o.outcome}")
    print_effects("Predicted against measured, per op (saved in a step of the model)", plan.effects)
    if plan.reverted:
        say(f"reverted to the default, the model is faster without them ({len(plan.reverted)}):")
        for key, name in plan.reverted.items():
            say(f"  {key}: {name}")
    active = "active" if plan.active else "NOT active: slower than the default on the whole model"
    print_holdings(plan)
    say(f"plan: {active}{'' if plan.verified else ', not compared on the whole model'}")


def print_holdings(plan: Plan) -> None:
    """The layouts of each family with the bytes that they take, what each buys, and the whole against the limit."""
    rows = []
    for held in plan.holdings:
        for place, (name, count) in enumerate(held.layouts.items() or [("", 0)]):
            first = place == 0
            rows.append(
                (
                    held.family if first else "",
                    str(held.layers) if first else "",
                    name or "the model's own",
                    size(count),
                    f"{held.buys[name]:.3f}×" if name in held.buys else "-",
                    (size(held.released) if held.released else "kept") if first else "",
                    held.numerics if first else "",
                )
            )
    title = "Weights: what each layout takes in all layers, the time of the mix without it, and the originals released"
    table(title, ("family", ">layers", "layout", ">takes", ">without it", ">released", "equal bits"), rows)
    for family, names in plan.layouts.items() if not plan.holdings else ():  # a plan of an older version
        say(f"  {family}: {', '.join(names)}")
    parts = [f"prepared weights {size(plan.bytes)}", f"released {size(plan.released)}"]
    if plan.model_bytes:
        total = plan.model_bytes + plan.bytes - plan.released
        parts = [
            f"the model's {size(plan.model_bytes)}",
            *parts,
            f"in all {size(total)}, {total / plan.model_bytes:.2f}x",
        ]
    limit = f" (limit {plan.limit})" if plan.limit else ""
    say(f"weights: {', '.join(parts)}{limit}")
    if plan.mix is not None:
        say(f"mix: {plan.mix}")
    if plan.batch_invariant:
        say("one result whatever the batch")
    if plan.planned_from:
        say(f"planned without measuring, from {plan.planned_from}")


def print_effects(title: str, effects: Sequence[Effect]) -> None:
    """The costliest problems of the model with what they were to save and did save; then those whose gain did not arrive."""
    heavy = sorted(effects, key=lambda e: -e.default_ms)
    shown = [effect for effect in heavy if effect.outcome != "immaterial"][:SHOWN]
    if len(shown) < len(effects):
        title += f", {len(shown)} of {len(effects)}"
    table(
        title,
        ("phase", "problem", "tactic", ">calls", ">default ms", ">predicted ms", ">measured ms", "outcome"),
        [
            (
                e.phase,
                e.problem,
                e.tactic,
                str(e.calls),
                f"{e.default_ms:.3g}",
                f"{e.predicted_ms:.3g}",
                measured(e),
                e.outcome,
            )
            for e in shown
        ],
    )
    missing = [f"{e.problem} in {e.phase} ({e.predicted_ms:.3g} ms predicted, {measured(e)} measured)"
               for e in heavy if e.missing]  # fmt: skip
    if missing:
        say(f"predicted gain did not arrive: {'; '.join(missing)}")


def measured(effect: Effect) -> str:
    """``3.1 [2.8, 3.3]``: milliseconds saved, with the interval."""
    return f"{effect.measured_ms:.3g} [{effect.low_ms:.3g}, {effect.high_ms:.3g}]"


def _phase(phase: Phase) -> tuple[str, ...]:
    return (
        phase.phase,
        str(phase.batch),
        str(phase.tokens),
        f"{phase.default_ms:.1f}",
        f"{phase.tuned_ms:.1f}",
        interval(phase.speedup, phase.speedup_low, phase.speedup_high),
        phase.outcome,
    )
