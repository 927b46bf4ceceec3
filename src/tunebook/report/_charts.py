"""What the charts draw, as plain values; every chart has a table of the same figures behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunebook.book import Change
from tunebook.records import Effect, Plan
from tunebook.report._figures import clean
from tunebook.report._tables import Spent, Weights

#: So many bars are readable; the table has all.
MOST_BARS = 40


def model_bars(plan: Plan) -> dict[str, Any]:
    """The speed-up of each phase, and over all of them, with its interval."""
    bars = [_bar(p.name.replace("_", " "), p.speedup, p.speedup_low, p.speedup_high) for p in plan.phases]
    if plan.overall is not None:
        o = plan.overall
        bars.append(_bar("overall", o.speedup, o.speedup_low, o.speedup_high))
    return {"kind": "ratios", "bars": bars, "axis": "times as fast as with the defaults"}


def change_bars(changes: Sequence[Change]) -> dict[str, Any]:
    """The surest changes, each with its interval."""
    bars = [_bar(c.problem, c.ratio, c.low, c.high, strong=c.significant) for c in changes[:MOST_BARS]]
    return {"kind": "ratios", "bars": bars, "axis": "speed-up in B over speed-up in A"}


def spent_bars(spent: Sequence[Spent]) -> dict[str, Any]:
    """Seconds of tuning by op."""
    bars = [[clean(one.op), [one.seconds]] for one in spent if one.seconds > 0][:MOST_BARS]
    return {"kind": "amounts", "bars": bars, "parts": ["seconds"], "axis": "seconds", "unit": "s"}


def weight_bars(plan: Plan, weights: Sequence[Weights]) -> dict[str, Any] | None:
    """What the weights take without the plan and with it. None where the plan does not tell."""
    if not plan.model_bytes:
        return None
    kept = max(0, plan.model_bytes - plan.released)
    bars = [["before", [plan.model_bytes, 0]], ["with the plan", [kept, plan.bytes]]]
    parts = ["the model's own weights", "prepared weights"]
    return {"kind": "amounts", "bars": bars, "parts": parts, "axis": "bytes", "unit": "B"}


def effect_points(effects: Sequence[Effect]) -> dict[str, Any] | None:
    """Predicted against measured saving, in milliseconds a step."""
    if not effects:
        return None
    points = [
        [clean(f"{e.problem} in {e.phase}"), e.predicted_ms, e.measured_ms, e.low_ms, e.high_ms, e.missing]
        for e in effects
    ]
    return {"kind": "effects", "points": points}


def _bar(name: str, value: float, low: float, high: float, *, strong: bool | None = None) -> list[Any]:
    shown = strong if strong is not None else low > 1 or high < 1
    return [clean(name), value, low, high, shown]
