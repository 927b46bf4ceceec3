"""What `tunebook show` says of verdicts, plans and single problems, from files whose content is known."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.records import (
    CacheDocument,
    Effect,
    Environment,
    Footer,
    Header,
    Holding,
    Member,
    Mix,
    Offered,
    Overall,
    Phase,
    Plan,
    PlanLine,
    Rejected,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ENVIRONMENT = Environment(hard={"device": "cpu of a test"}, soft={})
FIRST, SECOND = "linear|N=8,K=8|bf16|M≤1", "linear|N=8,K=8|bf16|M≤4"


def verdict(key: str, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "problem": key,
        "winner": "torch[operand=columns]",
        "status": "likely",
        "speedup": 1.84,
        "low": 1.79,
        "high": 1.90,
        "seconds": 2e-5,
        "frontier": (
            Member(tactic="torch[operand=columns]", ratio=1.0, low=1.0, high=1.0),
            Member(tactic="onednn", ratio=1.005, low=0.99, high=1.02, bytes=128, layout="onednn:packed"),
            Member(tactic="default", ratio=1.84, low=1.79, high=1.90),
        ),
        "offered": {"torch": Offered(version="1", space=""), "default": Offered(version="1", space="")},
        "ties": ("onednn", "torch[operand=rows]"),
        "rejected": (Rejected(tactic="wild", reason="memory", detail="9 GB"),),
        "rounds": 17,
        "measured": 1.25,
        "loss": 0.0123,
        "space": 1200,
        "seen": 96,
    }
    return Verdict(**{**fields, **changes})


VERDICTS = {FIRST: verdict(FIRST), SECOND: verdict(SECOND, status="proven", ties=(), rejected=(), seen=1200)}


def effect(key: str, phase: str, predicted: float, measured: float, outcome: Any) -> Effect:
    return Effect(
        problem=key,
        phase=phase,
        tactic="torch[operand=columns]",
        calls=24,
        default_ms=4.0,
        predicted_ms=predicted,
        measured_ms=measured,
        low_ms=measured - 0.1,
        high_ms=measured + 0.1,
        outcome=outcome,
    )


PLAN = Plan(
    model="a-model",
    fingerprint="f",
    tactics={FIRST: "default", SECOND: "torch[operand=columns]"},
    requested=("decode 1", "decode 16"),
    verified=True,
    phases=(
        Phase(
            phase="decode",
            batch=16,
            tokens=1,
            default_ms=10,
            tuned_ms=8,
            speedup=1.25,
            speedup_low=1.2,
            speedup_high=1.3,
        ),
    ),
    overall=Overall(speedup=1.25, speedup_low=1.2, speedup_high=1.3),
    effects=(
        effect(SECOND, "decode_16", 1.83, 1.75, "arrived"),
        effect(FIRST, "decode_1", 1.83, -0.5, "slower"),
        effect(SECOND, "prefill_9", 0.01, 0.02, "immaterial"),
    ),
    reverted={FIRST: "torch[operand=columns]"},
    layouts={"linear|N=8|bf16": ("torch:columns", "torch:rows")},
    bytes=300_000,
    model_bytes=1_000_000,
    holdings=(
        Holding(
            family="linear|N=8|bf16",
            layers=24,
            layouts={"torch:columns": 100_000, "torch:rows": 200_000},
            buys={"torch:columns": 1.2345, "torch:rows": 1.0},
            released=250_000,
            source="torch[operand=columns]",
        ),
    ),
    limit="1.1x",
    mix=Mix(steps={"decode 1": 100, "decode 16": 1}),
)
TRIALS = (
    Timed(tactic="torch[operand=columns]", samples=(1e-5, 2e-5, 3e-5, 2e-5), rounds=(0, 1, 2, 3), inner=50, error=2e-5),
    Timed(tactic="far", samples=(9e-4,), rounds=(-1,), inner=1),
    Rejected(tactic="absent", reason="unavailable", detail="no such device"),
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    document = CacheDocument(schema=1, environment=ENVIRONMENT, verdicts=VERDICTS, plans={"f": PLAN})
    path = tmp_path / "winners.json"
    path.write_bytes(msgspec.json.encode(document))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    header = Header(session="s", started="2026-01-01T00:00:00", policy="reuse", environment=ENVIRONMENT, version="0")
    lines = [
        header,
        *(TrialLine(problem=FIRST, trial=trial) for trial in TRIALS),
        TrialLine(problem=SECOND, trial=TRIALS[0]),
        *(VerdictLine(verdict=v) for v in VERDICTS.values()),
        PlanLine(plan=PLAN),
        Footer(finished="2026-01-01T00:00:09", seconds=9.0, problems=2),
    ]
    path = tmp_path / "winners.20260101_000000.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def line_of(text: str, *parts: str) -> str:
    """The one line that holds all of these."""
    (found,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return found


def test_a_verdict_is_a_line_with_all_that_it_rests_on(cache: Path, tmp_path: Path, cli_inside: Cli) -> None:
    text = cli_inside(tmp_path, "show", cache).stdout
    first = line_of(text, FIRST, "1.84")
    assert "[1.79, 1.90]  likely" in first
    assert "17  1.2 s" in first
    assert first.endswith("ties with 2, expected loss 1.2%, saw 96 of 1,200, 1 rejected")
    second = line_of(text, SECOND, "1.84")
    assert second.endswith("proven      17  1.2 s"), "nothing to remark: the loss of a proven one is not told"
    rejected = line_of(text, FIRST, "9 GB")
    assert rejected.split()[-5:] == ["wild", "memory", "constraints", "9", "GB"]


def test_what_was_not_measured_shows_no_figures(tmp_path: Path, cli_inside: Cli) -> None:
    left = verdict(
        FIRST, status="unresolved", rounds=0, measured=0.0, loss=0.0, seen=0, ties=(), rejected=(), note="left out: why"
    )
    path = tmp_path / "c.json"
    path.write_bytes(msgspec.json.encode(CacheDocument(schema=1, environment=ENVIRONMENT, verdicts={FIRST: left})))
    line = line_of(cli_inside(tmp_path, "show", path).stdout, FIRST)
    assert line.split("unresolved")[1].split() == ["-", "-", "left", "out:", "why"]


def test_a_plan_tells_what_its_weights_take_and_buy_against_the_limit(cache: Path, cli_inside: Cli) -> None:
    text = cli_inside(cache.parent, "show", cache).stdout
    (first,) = (line for line in text.splitlines() if "torch:columns" in line)
    assert first.split() == ["linear|N=8|bf16", "24", "torch:columns", "100", "kB", "1.234×", "250", "kB"]
    (second,) = (line for line in text.splitlines() if "torch:rows" in line)
    assert second.split() == ["torch:rows", "200", "kB", "1.000×"]
    assert line_of(text, "weights:") == (
        "weights: the model's 1 MB, prepared weights 300 kB, released 250 kB, in all 1.05 MB, 1.05x (limit 1.1x)"
    )
    assert line_of(text, "mix:") == "mix: decode 1=100,decode 16=1"
    document = json.loads(cli_inside(cache.parent, "show", cache, "--json").stdout)
    (holding,) = document["plans"]["f"]["holdings"]
    assert (holding["layouts"], holding["released"]) == ({"torch:columns": 100_000, "torch:rows": 200_000}, 250_000)


def test_a_plan_tells_whose_gain_did_not_arrive_and_what_was_reverted(
    cache: Path, tmp_path: Path, cli_inside: Cli
) -> None:
    text = cli_inside(tmp_path, "show", cache).stdout
    assert line_of(text, "Predicted against measured, per op").endswith("2 of 3")
    assert line_of(text, "decode_16", SECOND).split()[-6:] == ["4", "1.83", "1.75", "[1.65,", "1.85]", "arrived"]
    lost = line_of(text, "decode_1   ", FIRST)
    assert lost.split()[-6:] == ["4", "1.83", "-0.5", "[-0.6,", "-0.4]", "slower"]
    named = line_of(text, "did not arrive: ")
    assert named == (
        f"predicted gain did not arrive: {FIRST} in decode_1 (1.83 ms predicted, -0.5 [-0.6, -0.4] measured)"
    )
    assert "prefill_9" not in text
    assert line_of(text, f"  {FIRST}: ") == f"  {FIRST}: torch[operand=columns]"
    document = json.loads(cli_inside(tmp_path, "show", cache, "--json").stdout)
    assert [e["outcome"] for e in document["plans"]["f"]["effects"]] == ["arrived", "slower", "immaterial"]
    assert document["plans"]["f"]["reverted"] == {FIRST: "torch[operand=columns]"}
    assert document["verdicts"][FIRST]["frontier"][1]["ratio"] == 1.005


def test_one_problem_in_full_from_a_cache(cache: Path, tmp_path: Path, cli_inside: Cli) -> None:
    text = cli_inside(tmp_path, "show", cache, "--problem", FIRST).stdout
    assert SECOND not in text, "a whole key is that problem alone"
    said = line_of(text, "over default")
    assert "1.84" in said
    assert "[1.79, 1.90] over default, ties with 2, " in said
    assert line_of(text, "tactics seen: ") == "  tactics seen: 96 of 1,200"
    tied = line_of(text, "onednn:packed")
    assert "[0.99, 1.02]" in tied
    assert tied.split()[-4:] == ["128", "B", "onednn:packed", "tied"]
    assert line_of(text, "1.00× [1.00, 1.00]").endswith("winner")
    assert line_of(text, "tied as well") == "tied as well: torch[operand=rows]"
    assert line_of(text, "wild").split()[:3] == ["wild", "memory", "constraints"]
    assert line_of(text, "in the plan for") == (
        "in the plan for a-model: default (torch[operand=columns] was reverted)"
    )
    assert "Trials" not in text, "a cache has no samples"


def test_one_problem_in_full_from_a_run_with_every_trial(run: Path, tmp_path: Path, cli_inside: Cli) -> None:
    text = cli_inside(tmp_path, "show", run, "--problem", FIRST).stdout
    timed = line_of(text, "torch[operand=columns]", "20 µs", "50")
    assert timed.split()[1:] == ["4", "50", "20", "µs", "75%", "2e-05"]
    assert line_of(text, "900 µs").split() == ["far", "1", "1", "900", "µs", "screened"]
    assert text.index("20 µs") < text.index("900 µs"), "the fastest first"
    assert line_of(text, "absent").split()[:3] == ["absent", "unavailable", "constraints"]
    document = json.loads(cli_inside(tmp_path, "show", run, "--problem", "bf16|M≤", "--json").stdout)
    assert set(document["verdicts"]) == set(document["trial_lines"]) == {FIRST, SECOND}
    assert document["trial_lines"][FIRST][0]["samples"] == [1e-5, 2e-5, 3e-5, 2e-5]
    assert [trial["type"] for trial in document["trial_lines"][FIRST]] == ["timed", "timed", "rejected"]
    assert document["trials"] == 4


def test_a_text_that_no_problem_contains_is_an_error_that_names_some(
    cache: Path, tmp_path: Path, cli_inside: Cli, complaint: Callable[..., str]
) -> None:
    line = complaint(cli_inside(tmp_path, "show", cache, "--problem", "conv", code=1))
    assert "'conv'" in line
    assert FIRST in line
