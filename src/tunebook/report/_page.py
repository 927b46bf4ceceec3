"""A run or a cache as the page shows it: the answer first, then sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunebook._figures import duration
from tunebook.records import Plan, Problem, Verdict
from tunebook.report._charts import effect_points, model_bars, spent_bars, weight_bars
from tunebook.report._detail import STEP, details
from tunebook.report._figures import count, interval
from tunebook.report._heat import Cell, HeatMap, heat_maps
from tunebook.report._tables import RESULTS, Row, Weights, fields_of, rows_of, spent_of, weights_of
from tunebook.store import CacheContents, Run

#: So many things that could not be read are named.
NAMED = 20


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """One plan with its charts, each by its number in the page's data."""

    plan: Plan
    weights: Sequence[Weights]
    verdict: str
    bars: int | None
    effects_chart: int | None
    weights_chart: int | None
    total: int


def run_page(name: str, found: Run | CacheContents) -> dict[str, Any]:
    """What the template of a run or cache is given."""
    run = found if isinstance(found, Run) else None
    verdicts = sorted(found.verdicts.values(), key=lambda verdict: _order(verdict.problem))
    plans = list(found.plans.values())
    rows = rows_of(verdicts, plans)
    detail = details(verdicts, run.trials if run is not None else (), plans)
    charts: list[dict[str, Any]] = []
    views = [_plan(plan, charts) for plan in plans]
    spent = spent_of(rows)
    environment = run.header.environment if run is not None else found.environment  # type: ignore[union-attr]
    model = (run.header.model if run is not None else "") or ", ".join(dict.fromkeys(p.model for p in plans if p.model))
    return {
        "name": name,
        "kind": "run" if run is not None else "cache",
        "title": model or "ops outside a model",
        "facts": _facts(name, run, rows),
        "answers": _answers(views, rows),
        "warnings": _warnings(found, rows),
        "plans": views,
        "maps": _maps(rows),
        "rows": rows,
        "ops": sorted({row.op for row in rows}),
        "statuses": [s for s in ("proven", "likely", "unresolved") if any(row.verdict.status == s for row in rows)],
        "results": [result for result in RESULTS if any(row.result == result for row in rows)],
        "runners": sorted({row.runner for row in rows}),
        "samples": run is not None,
        "thinned": detail.thinned,
        "spent": spent,
        "spent_chart": _add(charts, spent_bars(spent)) if any(one.seconds for one in spent) else None,
        "seconds": run.footer.seconds if run is not None and run.footer is not None else None,
        "fields": fields_of(environment),
        "misses": [str(miss) for miss in found.misses[:NAMED]],
        "more_misses": max(0, len(found.misses) - NAMED),
        "data": {"step": STEP, "texts": detail.texts, "problems": detail.problems, "charts": charts},
    }


def _order(key: str) -> tuple[str, list[tuple[str, int]], str]:
    """Buckets of one family stand together, the small ones first."""
    problem = Problem.parse(key)
    return problem.family, [(dim.name, dim.size) for dim in problem.dims], key


def _add(charts: list[dict[str, Any]], chart: dict[str, Any] | None) -> int | None:
    if chart is None:
        return None
    charts.append(chart)
    return len(charts) - 1


def _plan(plan: Plan, charts: list[dict[str, Any]]) -> PlanView:
    weights = weights_of(plan)
    return PlanView(
        plan=plan,
        weights=weights,
        verdict=_verdict(plan),
        bars=_add(charts, model_bars(plan)) if plan.phases else None,
        effects_chart=_add(charts, effect_points(plan.effects)),
        weights_chart=_add(charts, weight_bars(plan, weights)),
        total=plan.model_bytes + plan.bytes - plan.released,
    )


def _verdict(plan: Plan) -> str:
    if not plan.verified or plan.overall is None:
        return f"{plan.model} was not compared on the whole model."
    o = plan.overall
    ratio = interval(o.speedup, o.speedup_low, o.speedup_high)
    phases = count(len(plan.phases), "phase")
    if o.outcome == "faster":
        return f"{plan.model} is {ratio} as fast as with its defaults, over {phases}."
    if o.outcome == "slower":
        return f"{plan.model} is slower than with its defaults: {ratio} as fast, over {phases}."
    return f"No difference is shown for {plan.model}: {ratio} as fast as with its defaults, over {phases}."


def _answers(views: Sequence[PlanView], rows: Sequence[Row]) -> list[str]:
    """What the file comes to, in sentences."""
    found = [view.verdict for view in views]
    if not rows:
        return [*found, "No problem was settled."]
    measured = [row for row in rows if row.measured]
    kept, out = sum(row.result == "default kept" for row in rows), len(rows) - len(measured)
    faster = sum(row.result == "faster" for row in rows)
    parts = [f"{faster} of {count(len(rows), 'problem')} have a winner that is faster than the default"]
    parts += [f"{kept} keep the default"] if kept else []
    parts += [f"{out} were left out"] if out else []
    proven = sum(row.verdict.status == "proven" for row in measured)
    return [*found, f"{', '.join(parts)}; {proven} verdicts are proven."]


def _facts(name: str, run: Run | None, rows: Sequence[Row]) -> list[tuple[str, str]]:
    facts = [("File", name), ("Kind", "run" if run is not None else "cache"), ("Problems", f"{len(rows):,}")]
    if run is not None:
        header, footer = run.header, run.footer
        commit = header.commit[:12] + (" (with changes that are not committed)" if header.dirty else "")
        facts += [
            ("Started", header.started.replace("T", " ")),
            ("Took", duration(footer.seconds) if footer is not None else ""),
            ("Went on", ", ".join(line.resumed.replace("T", " ") for line in run.resumed)),
            ("Policy", header.policy),
            ("Note", header.note),
            ("Commit", commit),
            ("Command", " ".join(header.command)),
            ("Version", header.version),
        ]
    return [(what, value) for what, value in facts if value]


def _warnings(found: Run | CacheContents, rows: Sequence[Row]) -> list[str]:
    """What a reader must know before believing the rest."""
    warnings = []
    if isinstance(found, Run):
        if found.footer is None:
            warnings.append("The run did not end by itself: what it settled before is shown.")
        if found.torn:
            warnings.append("Its last line is cut off.")
    if found.misses:
        warnings.append(f"{count(len(found.misses), 'entry', 'entries')} cannot be read: see the end of the page.")
    for plan in found.plans.values():
        if not plan.active:
            warnings.append(f"The plan for {plan.model} is not active: it was slower than the defaults.")
        if plan.reverted:
            problems = count(len(plan.reverted), "problem")
            warnings.append(f"{problems} of {plan.model} won their races, make the model slower, and were reverted.")
        missing = sum(effect.missing for effect in plan.effects)
        if missing:
            warnings.append(f"{count(missing, 'predicted gain')} of {plan.model} did not arrive in the model.")
    unresolved = sum(row.verdict.status == "unresolved" and row.measured for row in rows)
    if unresolved:
        warnings.append(f"{count(unresolved, 'problem is', 'problems are')} unresolved: more time would tell.")
    return warnings


def _maps(rows: Sequence[Row]) -> list[HeatMap]:
    return heat_maps(_cell(row.verdict, row) for row in rows)


def _cell(verdict: Verdict, row: Row) -> Cell:
    return Cell(
        problem=verdict.problem,
        value=verdict.speedup if row.measured else None,
        text=f"{verdict.speedup:.2f}" if row.measured else "–",
        target=row.anchor,
        note={"default kept": "default", "no difference": "not shown"}.get(row.result, ""),
    )
