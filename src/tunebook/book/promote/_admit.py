"""What of a run may go into a cache: what it measured, did not reject, and the op offers today."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tunebook.book._declared import why_not_offered
from tunebook.book._restarts import measured
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Problem, Rejected, Tactic, Verdict
from tunebook.store import Recorded, Run
from tunebook.tuner import PINNED, Selection, answer


def admit(run: Run, ops: Mapping[str, OpSpec]) -> tuple[dict[str, Verdict], dict[str, str]]:
    """The verdicts of a run that may go into a cache, by problem, and why the others may not.

    Of the frontier and the ties those are left out that the op does not offer, or that the run rejected.
    """
    fit: dict[str, Verdict] = {}
    refused: dict[str, str] = {}
    for key, verdict in run.verdicts.items():
        found = _admitted(verdict, run.problems.get(key), ops)
        if isinstance(found, str):
            refused[key] = found
        else:
            fit[key] = found
    return fit, refused


def _admitted(verdict: Verdict, recorded: Recorded | None, ops: Mapping[str, OpSpec]) -> Verdict | str:
    """The verdict as it may go in, or why it may not."""
    if verdict.note == PINNED:
        return "a pin stands behind it, no measurement"
    if not measured(verdict):
        return verdict.note
    problem = Problem.parse(verdict.problem)
    spec = ops.get(problem.op)
    if spec is None:
        return f"op {problem.op} is not declared here; name the file that declares it: --with FILE"
    rejected = {one.tactic: one for one in verdict.rejected} | (dict(recorded.rejected) if recorded is not None else {})
    if verdict.winner in rejected:
        return f"the run rejected its winner {verdict.winner}: {_words(rejected[verdict.winner])}"
    # Which default an attached module has is not known here. A start that serves compares it.
    default = verdict.offered.get(DEFAULT.runner)
    worth = answer(verdict, spec, default.version if default is not None else "", Selection())
    if not worth.members or worth.members[0].tactic != verdict.winner:
        reason = next((n for n in worth.notes if n.startswith(f"{verdict.winner}: ")), "; ".join(worth.notes))
        return f"its winner is not offered: {reason}"
    members = tuple(member for member in worth.members if member.tactic not in rejected)
    ties = tuple(name for name in verdict.ties if name not in rejected and _offered(name, verdict, problem, spec))
    if (members, ties) == (verdict.frontier, verdict.ties):
        return verdict
    return msgspec.structs.replace(verdict, frontier=members, ties=ties)


def _offered(name: str, verdict: Verdict, problem: Problem, spec: OpSpec) -> bool:
    """Whether the op offers a tactic in the version that the verdict is about."""
    tactic = Tactic.parse(name)
    if tactic == DEFAULT:
        return True
    known = verdict.offered.get(tactic.runner)
    offered = why_not_offered(spec, problem, tactic) is None
    return offered and known is not None and known.version == spec.runners[tactic.runner].version


def _words(rejected: Rejected) -> str:
    return f"{rejected.reason}: {rejected.detail}" if rejected.detail else rejected.reason
