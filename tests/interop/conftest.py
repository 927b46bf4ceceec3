"""The fixtures' books, and FlashInfer's own autotuner in a process beside the tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunebook.interop import FORMATS, Format, format_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # what damages files is shared with the fault scenarios

FIXTURES = Path(__file__).parent / "fixtures"
#: What lies among the fixtures and is no book.
NO_BOOK = (".md", ".py")


def _books() -> Iterator[tuple[Format, Path]]:
    """Every book among the fixtures with its format; a directory that is one counts once, not its files."""
    waiting = [path for path in sorted(FIXTURES.iterdir()) if path.is_dir() and path.name != "__pycache__"]
    while waiting:
        path = waiting.pop(0)
        kind = format_of(path)
        if kind is not None:
            yield kind, path
        elif path.is_dir():
            waiting += sorted(path.iterdir())
        else:
            assert path.suffix in NO_BOOK, f"{path} is of no format"


BOOKS = tuple(_books())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with `kind` and `path` runs for every book among the fixtures, one with `fmt` and `paths` for every format."""
    if {"kind", "path"} <= set(metafunc.fixturenames):
        names = [str(path.relative_to(FIXTURES)) for _, path in BOOKS]
        metafunc.parametrize(("kind", "path"), BOOKS, ids=names)
    if {"fmt", "paths"} <= set(metafunc.fixturenames):
        cases = [(one, [path for kind, path in BOOKS if kind is one]) for one in FORMATS]
        metafunc.parametrize(("fmt", "paths"), cases, ids=[one.name for one in FORMATS])


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def flashinfer() -> Iterator[Callable[..., dict[str, Any]]]:
    """``flashinfer(serve_v1=path)``: ask the process that fixtures/flashinfer_process.py describes."""
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed; `make setup` installs it")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(FIXTURES / "flashinfer_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answers = process.stdin, process.stdout

    def request(**what: Any) -> dict[str, Any]:
        ask.write(json.dumps(what, default=str) + "\n")
        ask.flush()
        line = answers.readline()
        assert line, "FlashInfer's process ended; its error is above"
        found: dict[str, Any] = json.loads(line)
        return found

    yield request
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()
