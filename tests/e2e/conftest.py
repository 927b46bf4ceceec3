"""An op of two tactics that count their calls, the files that tuning it leaves, and one tuning of a model to look at."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import device_of
from tunebook.store import Location


def pause() -> None:
    """Slower than anything else here by orders of magnitude, so that who wins is certain."""
    time.sleep(0.002)


class Scale:
    """The op ``x * s`` with the tactics `default` and `quick[block=…]`; the one named `winner` does not pause."""

    def __init__(self, winner: str = "quick", version: str = "1", block: int = 1) -> None:
        self.calls: Counter[str] = Counter()

        def scale(x: torch.Tensor, s: float) -> torch.Tensor:
            self.calls["default"] += 1
            if winner != "default":
                pause()
            return x * s

        def quick(x: torch.Tensor, s: float, *, block: int) -> torch.Tensor:
            self.calls["quick"] += 1
            if winner != "quick":
                pause()
            return x * s

        self.op: Any = tb.op(Demo.OP, buckets={"x": {0: tb.pow2(max=64, name="M")}})(scale)
        self.op.runner("quick", {"block": (block,)}, version=version)(quick)

    def __call__(self, rows: int = 4, *, dtype: torch.dtype = torch.float32, grad: bool = False) -> str:
        """Call the op on `rows` rows, check the result, and say which tactic computed it."""
        x = torch.arange(rows * 3, dtype=dtype).reshape(rows, 3).requires_grad_(grad)
        before = Counter(self.calls)
        result = self.op(x, 2.0)
        assert torch.equal(result, x * 2.0)
        (served,) = self.calls - before
        return served

    def tune(self, rows: int = 4, **options: Any) -> Any:
        """Leave an autotune block around one call; `calls` then counts what ran apart from that call."""
        self.calls.clear()
        with tb.autotune(budget_s=30, **options) as block:
            self(rows)
        self.calls["default"] -= 1
        return block


class Demo:
    """`op()` declares the op anew, as a new process does; the rest looks at its cache, by default the one in its place."""

    OP = "demo::scale"
    QUICK = "quick[block=1]"
    op = Scale

    @staticmethod
    def key(rows: int = 4) -> str:
        """The problem of a call with so many rows, a power of two."""
        return f"{Demo.OP}|x.1=3,s=2.0|fp32|M≤{rows}"

    @staticmethod
    def cache() -> Path:
        return Location.of(device_of("cpu").environment()).cache

    def runs(self, cache: Path | None = None) -> list[Path]:
        return sorted((cache or self.cache()).parent.glob("runs/*.jsonl"))

    def snapshot(self) -> tuple[bytes, int, int] | None:
        """What changes with any write to the cache; None where there is none."""
        path = self.cache()
        return (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None

    def verdicts(self, cache: Path | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((cache or self.cache()).read_text())["verdicts"]
        return found

    def poison(self) -> None:
        """Make every verdict of the cache claim that the default won."""
        document = json.loads(self.cache().read_text())
        for verdict in document["verdicts"].values():
            verdict["winner"] = "default"
            verdict["frontier"] = [{"tactic": "default", "ratio": 1.0, "low": 1.0, "high": 1.0}]
        self.cache().write_text(json.dumps(document))


@pytest.fixture
def demo(clean_ops: None) -> Demo:
    return Demo()


@pytest.fixture(scope="session")
def first(
    cli_interpreter: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """One tuning that many tests look at: its cache directory, its document, and what it logged."""
    phases = ("--decode", "1", "--prefill", "2", "--budget", "4")
    for _ in range(3):  # on a machine that is too busy the comparison on the whole model may not fit the budget
        home = tmp_path_factory.mktemp("tuned") / "home"
        done = cli_interpreter(home, "tune", "tiny-moe", *phases, "--note", "the first", "--json")
        document = json.loads(done.stdout)
        if document["plan"]["verified"]:
            break
    return home, document, done.stderr


@pytest.fixture
def tuned(first: tuple[Path, dict[str, Any], str], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of that cache directory that the test may change, and the document of the tuning, paths adapted."""
    home, document, _ = first
    shutil.copytree(home, tmp_path / "home")
    moved = {key: document[key].replace(str(home), str(tmp_path / "home")) for key in ("cache", "run")}
    return tmp_path / "home", {**document, **moved}


@pytest.fixture
def complaint() -> Callable[[subprocess.CompletedProcess[str]], str]:
    """``complaint(done)``: the one line of an error, which must be all there is."""

    def read(done: subprocess.CompletedProcess[str]) -> str:
        lines = [line for line in done.stderr.splitlines() if line.startswith("tunebook: error: ")]
        assert len(lines) == 1, done.stderr
        assert done.stderr.splitlines()[-1] == lines[0], "something follows the error"
        assert done.stdout == ""
        return lines[0]

    return read
