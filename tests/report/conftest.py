"""Runs with everything that a page shows, and a browser to look at it."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

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
    Offered,
    Overall,
    Phase,
    Plan,
    PlanLine,
    Profile,
    Rejected,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)
from tunebook.store.run_writer import encode_line

#: CI sets this: a test that needs the browser then fails without it instead of being skipped.
REQUIRED = "REQUIRE_CHROMIUM"
#: The machine may be busy.
TIMEOUT_MS = 90_000
ARTIFACTS = Path(__file__).parents[2] / "build" / "screenshots"
SCRIPT = "<script>document.title = 'owned'</script>"


def key(size: int, op: str = "linear", n: int = 8) -> str:
    return f"{op}|N={n},K=8|bf16|M≤{size}"


def tactic(number: int) -> str:
    return "default" if number == 0 else f"native[tile={number}]"


class Written:
    """Writes run files of a known content."""

    environment = Environment(hard={"device": "a test's", "threads": "2"}, soft={"torch": "2.13", "load": "0.1"})
    offered: ClassVar = {"default": Offered(version="1", space=""), "native": Offered(version="7", space="s")}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def verdict(self, problem: str, speedup: float = 1.5, *, winner: str = "native[tile=1]", **more: Any) -> Verdict:
        bounds = {"low": speedup * 0.99, "high": speedup * 1.01}
        frontier: tuple[Member, ...] = (Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),)
        if winner != "default":
            frontier += (Member(tactic="default", ratio=speedup, low=speedup * 0.99, high=speedup * 1.01, bytes=0),)
        fields: dict[str, Any] = {
            "problem": problem,
            "winner": winner,
            "status": "proven",
            "speedup": speedup,
            **bounds,
            "seconds": 1e-4 / speedup,
            "frontier": frontier,
            "offered": self.offered,
            "rounds": 20,
            "measured": 1.5,
        }
        return Verdict(**{**fields, **more})

    def timed(self, problem: str, name: str, median: float = 1e-4, samples: int = 30, seed: int = 0) -> TrialLine:
        rng = random.Random(f"{problem} {name} {seed}")
        values = tuple(median * rng.lognormvariate(0, 0.02) for _ in range(samples))
        trial = Timed(tactic=name, samples=values, rounds=tuple(range(samples)), inner=4, bytes=1000, error=0.001)
        return TrialLine(problem=problem, trial=trial)

    def plan(self, **more: Any) -> Plan:
        speedup: dict[str, Any] = {"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6}
        told = {"phase": "decode_16", "tactic": "native[tile=1]", "calls": 4, "default_ms": 3.0}
        came = {"predicted_ms": 1.0, "measured_ms": 0.9, "low_ms": 0.7, "high_ms": 1.1, "outcome": "arrived"}
        lost = {"predicted_ms": 0.5, "measured_ms": 0.0, "low_ms": -0.1, "high_ms": 0.1, "outcome": "did not arrive"}
        holding = Holding(
            family="linear|N=8,K=8|bf16",
            layers=4,
            layouts={"packed": 400_000_000},
            buys={"packed": 1.2},
            released=300_000_000,
            source="native[tile=1]",
        )
        fields: dict[str, Any] = {
            "model": "a-model",
            "fingerprint": "f",
            "tactics": {key(16): "native[tile=1]"},
            "profile": (Profile(phase="decode 16", seconds=9e-3, calls={key(16): 4}, taken={key(16): 3e-3}),),
            "bytes": 400_000_000,
            "model_bytes": 1_000_000_000,
            "holdings": (holding,),
            "limit": "1.1x",
            "verified": True,
            "phases": (Phase(phase="decode", batch=16, tokens=1, default_ms=9.0, tuned_ms=6.0, **speedup),),
            "overall": Overall(**speedup),
            "effects": tuple(
                msgspec.convert({"problem": key(size), **told, **rest}, Effect)
                for size, rest in ((16, came), (8, lost))
            ),
        }
        return Plan(**{**fields, **more})

    def run(self, lines: list[Any], *, name: str = "a.jsonl", footer: bool = True, **header: Any) -> Path:
        fields: dict[str, Any] = {
            "session": "s",
            "started": "2026-01-01T00:00:00",
            "policy": "fresh",
            "environment": self.environment,
            "version": "0.1",
            "model": "a-model",
        }
        settled = sum(isinstance(line, VerdictLine) for line in lines)
        end = [Footer(finished="2026-01-01T00:01:00", seconds=60.0, problems=settled)] if footer else []
        path = self.folder / name
        path.write_bytes(b"".join(map(encode_line, [Header(**{**fields, **header}), *lines, *end])))
        return path

    def usual(self, **more: Any) -> Path:
        """A run of two ops with everything in it: a tie, rejections, what was left out, a plan with effects and weights."""
        lines: list[Any] = []
        for place, size in enumerate((1, 2, 4, 8, 16)):
            problem, speedup = key(size), 1.2 + place / 2
            for number in range(4):
                median = 1e-4 * (1.0 if number == 0 else (1 + number / 20) / speedup)
                lines.append(self.timed(problem, tactic(number), median))
            lines.append(
                TrialLine(problem=problem, trial=Timed(tactic="native[tile=9]", samples=(4e-4,), rounds=(-1,)))
            )
            wrong = Rejected(tactic=f"native[note='{SCRIPT}']", reason="correctness", detail=f"a row is off {SCRIPT}")
            lines.append(TrialLine(problem=problem, trial=wrong))
            ties = ("native[tile=1]", "native[tile=2]") if size == 8 else ()
            lines.append(VerdictLine(verdict=self.verdict(problem, speedup, ties=ties, rejected=(wrong,))))
        kept = self.verdict(key(1, "norm"), 1.0, winner="default", status="likely", loss=0.01)
        out = self.verdict(
            key(2, "norm"), 1.0, winner="default", status="unresolved", note="left out: the budget was spent"
        )
        hostile = self.verdict(key(4, "norm"), 2.0, winner=f"native[note='{SCRIPT}']", note=SCRIPT)
        lines += [VerdictLine(verdict=verdict) for verdict in (kept, out, hostile)]
        lines.append(PlanLine(plan=self.plan()))
        return self.run(lines, **{"note": SCRIPT, **more})

    def large(self, problems: int, tactics: int, samples: int) -> Path:
        lines: list[Any] = []
        for number in range(problems):
            problem = key(2 ** (number % 10), f"op{number // 50}", n=64 * (1 + number // 10))
            medians = {self.long_name(place): 1e-4 * (1 + place / 10) for place in range(tactics)}
            lines += [self.timed(problem, name, median, samples) for name, median in medians.items()]
            lines.append(VerdictLine(verdict=self.verdict(problem, 1.5, winner=self.long_name(1))))
        return self.run(lines, name="large.jsonl")

    @staticmethod
    def long_name(place: int) -> str:
        if place == 0:
            return "default"
        return f"native[isa=avx512_bf16,block=32,row_tile={place},split=columns,prefetch=3072,threads=0]"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def _browser() -> str | None:
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser. Without one the test is skipped, or fails where `REQUIRED` is set."""
    missing = []
    if importlib.util.find_spec("playwright") is None:
        missing.append("the package playwright is not installed (pip install 'tunebook[dev]')")
    path = _browser()
    if path is None:
        missing.append("no Chromium is installed (scripts/install_chromium.sh, or apt-get install chromium)")
    if missing:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(f"cannot look at the page: {'; '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=TIMEOUT_MS)
        yield browser
        browser.close()


SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def look(chromium: Any) -> Iterator[Callable[..., Any]]:
    """``look(path, "phone", dark=True)``: the page, opened. What it complained of, or asked the network for, fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, size: str = "desktop", *, dark: bool = False, **more: Any) -> Any:
        width, height = SIZES[size]
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: complaints.append(f"request: {request.url}") if request.url != path.as_uri() else None,
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def keep() -> Callable[[Any, str], None]:
    """``keep(page, name)``: a screenshot for people to look at, in build/screenshots."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)

    def shoot(page: Any, name: str) -> None:
        page.screenshot(path=str(ARTIFACTS / f"{name}.png"), full_page=True)

    return shoot


@pytest.fixture
def cache_path(written: Written, tmp_path: Path) -> Path:
    """A cache of one problem, and a plan."""
    document = CacheDocument(
        schema=1,
        environment=written.environment,
        verdicts={key(4): written.verdict(key(4))},
        plans={"f": written.plan()},
    )
    path = tmp_path / "winners.json"
    path.write_bytes(msgspec.json.encode(document))
    return path


@pytest.fixture
def two_runs(written: Written) -> tuple[Path, Path]:
    """Runs of which B is better on M≤2, worse on M≤4, and has other problems."""
    before = written.usual()
    speedups = {1: 1.2, 2: 2.6, 4: 1.3, 8: 2.7, 16: 3.2, 32: 2.0}
    verdicts = [VerdictLine(verdict=written.verdict(key(size), speedup)) for size, speedup in speedups.items()]
    after = written.run([*verdicts, PlanLine(plan=written.plan())], name="b.jsonl", note="other")
    return before, after
