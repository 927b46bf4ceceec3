"""`tunebook show --problem`: all that is known of one problem: frontier, ties, rejections, trials, its place in the model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tunebook._figures import duration, size
from tunebook.cli._output import interval, say
from tunebook.cli._tables import table
from tunebook.cli._tune_report import print_effects, remark
from tunebook.errors import StoreError
from tunebook.records import Plan, Rejected, Timed, TrialLine, Verdict

#: So many problems are named where none was found.
NAMED = 3


def matching(verdicts: Mapping[str, Verdict], text: str) -> list[Verdict]:
    """The verdict under this key, else all whose key contains the text. Raises StoreError where there is none."""
    if text in verdicts:
        return [verdicts[text]]
    found = [verdict for key, verdict in sorted(verdicts.items()) if text in key]
    if not found:
        some = ", ".join(sorted(verdicts)[:NAMED]) or "none at all"
        more = f" and {len(verdicts) - NAMED} more" if len(verdicts) > NAMED else ""
        raise StoreError(f"no problem contains {text!r}; there are {some}{more}")
    return found


def print_problem(verdict: Verdict, trials: Iterable[TrialLine], plans: Iterable[Plan]) -> None:
    """Everything about one problem. `trials` are those of a run file, of any problem; a cache has none."""
    say(f"\n{verdict.problem}")
    rest = remark(verdict)
    over = interval(verdict.speedup, verdict.low, verdict.high)
    say(f"  {verdict.winner}: {over} over default" + (f", {rest}" if rest else ""))
    facts = {
        "status": verdict.status,
        "a call": duration(verdict.seconds) if verdict.seconds else "",
        "rounds": str(verdict.rounds or ""),
        "spent": duration(verdict.measured) if verdict.measured else "",
        "tactics seen": f"{verdict.seen:,} of {verdict.space:,}" if verdict.space else "",
        "run": verdict.run,
    }
    for name, fact in facts.items():
        if fact:
            say(f"  {name}: {fact}")
    table(
        "Frontier: the best tactic of each runner and layout, its time over the winner's",
        ("tactic", ">ratio", ">bytes", "layout", "remark"),
        [
            (
                m.tactic,
                interval(m.ratio, m.low, m.high),
                size(m.bytes) if m.bytes else "",
                m.layout,
                _place(m.tactic, verdict),
            )
            for m in verdict.frontier
        ],
    )
    beside = [name for name in verdict.ties if name not in {m.tactic for m in verdict.frontier}]
    if beside:
        say(f"tied as well: {', '.join(beside)}")
    mine = [line for line in trials if line.problem == verdict.problem]
    _print_rejected([*verdict.rejected, *(line.trial for line in mine if isinstance(line.trial, Rejected))])
    last = max((line.race for line in mine), default=0)
    _print_timed([(line.trial, 0 < line.race < last) for line in mine if isinstance(line.trial, Timed)])
    for plan in plans:
        _print_place(verdict.problem, plan)


def _place(tactic: str, verdict: Verdict) -> str:
    return "winner" if tactic == verdict.winner else "tied" if tactic in verdict.ties else ""


def _print_rejected(rejected: Sequence[Rejected]) -> None:
    rows = [(r.tactic, r.reason, r.t4, r.detail) for r in dict.fromkeys(rejected)]
    table("Rejected tactics", ("tactic", "reason", "T4 class", "detail"), rows)


def _print_timed(trials: Sequence[tuple[Timed, bool]]) -> None:
    """Samples of each tactic, the fastest first, and whether they are of a race that was given up for another.

    The spread is the middle half of its samples over their median.
    """
    from tunebook.measure import SCREENING

    rows = []
    sampled = [(trial, given_up) for trial, given_up in trials if trial.samples]
    for trial, given_up in sorted(sampled, key=lambda pair: statistics.median(pair[0].samples)):
        median = statistics.median(trial.samples)
        quarters = statistics.quantiles(trial.samples, n=4) if len(trial.samples) > 1 else None
        rows.append(
            (
                trial.tactic,
                str(len(trial.samples)),
                str(trial.inner),
                duration(median),
                f"{(quarters[2] - quarters[0]) / median:.0%}" if quarters else "",
                f"{trial.error:.1g}" if trial.error is not None else "",
                "screened" if set(trial.rounds) == {SCREENING} else "in a race that was given up" if given_up else "",
            )
        )
    columns = ("tactic", ">samples", ">calls each", ">median", ">spread", ">error", "remark")
    table("Trials", columns, rows)


def _print_place(key: str, plan: Plan) -> None:
    """What serves the problem in a plan, and what it saves there."""
    if key not in plan.tactics:
        return
    given_back = f" ({plan.reverted[key]} was reverted)" if key in plan.reverted else ""
    say(f"in the plan for {plan.model}: {plan.tactics[key]}{given_back}")
    print_effects("Predicted against measured", [effect for effect in plan.effects if effect.problem == key])
