"""What every test gets: a cache directory of its own, nothing of the developer's, no worker processes; clean ops on request."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

# Before torch is loaded. Threads of several test processes that wait for each other in a loop keep a processor from the thread
# that they wait for: four times as long on two processors.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.stage import Stage  # noqa: E402 - found from the root

import tunebook  # noqa: E402
from tunebook.envs import envs  # noqa: E402

#: What runs is the package that these tests import, wherever it lies.
PACKAGE_ROOT = Path(tunebook.__file__).parents[1]
ALIAS = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"

# A busy machine is no failure of the code. The same examples each time, so that a failure is one of the change that was made;
# `make test ARGS=--hypothesis-profile=search` looks for new ones.
settings.register_profile("tunebook", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("tunebook")


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_developers() -> Iterator[None]:
    """The variables that the developer has set do not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("TUNEBOOK_") or name == ALIAS]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache directory that is not there yet, and a logger that reaches caplog."""
    if "TUNEBOOK_CACHE_DIR" not in os.environ:  # a fixture of a whole module may have chosen one
        monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(tmp_path_factory.mktemp("home") / "cache"))
    if "TUNEBOOK_ISOLATE" not in os.environ:  # a worker takes seconds to start; the tests of isolation ask for one
        monkeypatch.setenv("TUNEBOOK_ISOLATE", "never")
    monkeypatch.setattr(envs, "_said", set())  # what is said once a process is said once a test
    logger = logging.getLogger("tunebook")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, []
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.fixture
def clean_ops() -> Iterator[None]:
    """Ops and runners that the test declares, and tactics that it installs, go with it. One thread: figures are not the point."""
    import torch

    import tunebook.kernels  # noqa: F401 - the shipped ops are part of what is put back
    from tunebook.dispatch import FREE, OPS

    threads, ops = torch.get_num_threads(), dict(OPS)
    runners = {name: dict(op.runners) for name, op in ops.items()}
    torch.set_num_threads(1)
    _forget()
    yield
    OPS.clear()
    OPS.update(ops)
    for name, op in ops.items():
        op.runners.clear()
        op.runners.update(runners[name])
    _forget()
    FREE.switch(True)
    torch.set_num_threads(threads)


def _forget() -> None:
    from tunebook.dispatch import FREE

    FREE.install({}, replace=True)
    FREE.counts.clear()


@pytest.fixture
def restart() -> Callable[[], None]:
    """Forget what free-standing ops are served with, as a new process does."""
    return _forget


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """``tiny_model(architecture, dtype)``: a `LoadedModel` of two layers with random weights, always the same ones."""
    from tunebook.engine.models import LoadedModel, fingerprint, random_model, tiny_config

    def make(architecture: str = "mixtral", dtype: str = "float32") -> LoadedModel:
        model = random_model(tiny_config(architecture), dtype)
        return LoadedModel(
            model=model,
            tokenizer=None,
            name=f"tiny-{architecture}",
            fingerprint=fingerprint(model),
            path=None,
            seconds=0.0,
        )

    return make


@pytest.fixture(scope="session")
def cli_environment() -> Callable[..., dict[str, str]]:
    """The environment of a process that runs the command line: one thread, nothing of the developer's."""

    def make(home: Path, **variables: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith("TUNEBOOK_") and k != ALIAS}
        return {
            **inherited,
            "PYTHONPATH": str(PACKAGE_ROOT),
            "TUNEBOOK_CACHE_DIR": str(home),
            "TUNEBOOK_THREADS": "1",
            "TUNEBOOK_ISOLATE": "never",
            **variables,
        }

    return make


@pytest.fixture(scope="session")
def command_stage() -> Iterator[Stage]:
    """Runs `tunebook` in processes forked from one that has imported what commands need."""
    stage = Stage(PACKAGE_ROOT)
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def cli(
    cli_environment: Callable[..., dict[str, str]], command_stage: Stage
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``cli(home, *arguments, code=0, **variables)``: run ``tunebook`` with that cache directory, and check its exit code.

    In a process of its own that is forked; `cli_interpreter` starts one.
    """

    def run(home: Path, *arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = cli_environment(home, **variables)
        ended = command_stage.run(*arguments, environment=environment, directory=Path.cwd())
        words = ["tunebook", *map(str, arguments)]
        return _checked(subprocess.CompletedProcess(words, ended.code, ended.out.decode(), ended.err.decode()), code)

    return run


@pytest.fixture(scope="session")
def cli_interpreter(cli_environment: Callable[..., dict[str, str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as `cli` in a new interpreter, which takes seconds to import: where its start or its end matters."""

    def run(home: Path, *arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tunebook", *map(str, arguments)],
            env=cli_environment(home, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return _checked(done, code)

    return run


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def cli_inside(
    clean_ops: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as `cli` in this process: for the many cases in which a process of its own would prove nothing more."""
    from tunebook.cli import main

    def run(home: Path, *arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for name, value in {"TUNEBOOK_CACHE_DIR": str(home), "TUNEBOOK_THREADS": "1", **variables}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["tunebook", *map(str, arguments)])
            capsys.readouterr()
            try:
                main()
                left = 0
            except SystemExit as end:
                left = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            out, err = capsys.readouterr()
        assert left == code, f"exit code {left}\n{out}\n{err}"
        return subprocess.CompletedProcess(sys.argv, left, out, err)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of fault scenarios, which reports hold: tests may have run in other processes, and their conftest there."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    figures = sorted(value for report in called for name, value in report.user_properties if name == "figure")
    if figures:
        terminalreporter.section("faults")
        for figure in figures:
            terminalreporter.write_line(figure)
