"""First runs in a worker process: what is rejected and remembered, what serves, and what cannot be isolated."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import OPS
from tunebook.errors import UsageError
from tunebook.ops import load_file
from tunebook.records import Rejected, Verdict

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are stopped and counted by /proc"),
    pytest.mark.usefixtures("clean_ops"),
]

#: Ops of a user's file. Each runner notes the process that it runs in.
FILE = """
import os
import time
from pathlib import Path

import torch
import tunebook as tb

NOTES = Path(__file__).with_name("notes")

def note(name):
    with NOTES.open("a") as file:
        file.write(f"{name} {os.getpid()}\\n")

@tb.op("user::scale", buckets={"x": {0: tb.pow2(max=1)}}, constants=("w", "by"))
def scale(x, w, by):
    time.sleep(0.002)
    return x * w * by

@scale.runner("good", version="1")
def good(x, w, by):
    note("good")
    return x * w * by

@scale.runner("crash", version=os.environ.get("CRASH_VERSION", "1"))
def crash(x, w, by):
    note("crash")
    os.abort()

@scale.runner("spoils", version="1", prepare=lambda w, by: (w, by))
def spoils(x, prepared):
    w, by = prepared
    w.mul_(2)
    return x * w * by
"""

NEWCOMER = """
from tunebook.dispatch import OPS

@OPS["user::scale"].runner("newcomer", version="1")
def newcomer(x, w, by):
    return x * w * by
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "scale_ops.py"
    file.write_text(FILE)
    return file


@pytest.fixture
def tune(tmp_path: Path, restart: Callable[[], None]) -> Callable[..., Verdict]:
    """``tune(file, **arguments of autotune)``: load the file as at a new start, tune one call, and give the verdict."""

    def run(*files: Path, **arguments: Any) -> Verdict:
        OPS.pop("user::scale", None)
        for name in [name for name in sys.modules if name.startswith("tunebook_user_")]:
            del sys.modules[name]
        for file in files:
            load_file(file)
        restart()
        torch.manual_seed(0)
        x, w = torch.randn(1, 512), torch.randn(512)
        kept = w.clone()
        with tb.autotune(cache=tmp_path / "cache.json", budget_s=60.0, seed=0, **arguments) as block:
            OPS["user::scale"](x, w, 2.0)
        assert torch.equal(w, kept), "a tactic reached the model's own weights"
        assert block.outcome is not None
        (verdict,) = block.outcome.verdicts.values()
        return verdict

    return run


def notes(file: Path) -> list[tuple[str, int]]:
    """The first runs since the last time: (runner, process)."""
    path = file.with_name("notes")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [(name, int(process)) for name, process in map(str.split, lines)]


def rejected(verdict: Verdict) -> dict[str, Rejected]:
    return {one.tactic: one for one in verdict.rejected}


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What users have: no variable, no argument."""
    monkeypatch.delenv("TUNEBOOK_ISOLATE")


@pytest.mark.usefixtures("default")
def test_a_crash_is_a_rejection_that_is_remembered_until_its_version_changes(
    user_file: Path, tmp_path: Path, tune: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = tune(user_file)
    assert verdict.winner == "good"
    found = rejected(verdict)
    assert set(found) == {"crash", "spoils"}
    assert (found["crash"].reason, found["crash"].t4) == ("crash", "runtime")
    assert "SIGABRT in scale_ops.py:" in found["crash"].detail
    assert found["crash"].harm
    assert found["spoils"].reason == "correctness"
    assert found["spoils"].ran
    assert not found["spoils"].harm
    ran = notes(user_file)
    assert ran[0][0] == "good"
    assert ran[0][1] != os.getpid(), "its first run is in a worker"
    assert {process for name, process in ran if name == "crash"}.isdisjoint({os.getpid()})
    assert ("good", os.getpid()) in ran, "it is timed in this process"

    newcomer = tmp_path / "newcomer_ops.py"
    newcomer.write_text(NEWCOMER)
    again = tune(user_file, newcomer, isolate="always")
    ran = notes(user_file)
    assert "crash" not in [name for name, _ in ran]
    assert rejected(again) == found, "of runners that did not race"
    good = [process for name, process in ran if name == "good"]
    assert good[0] != os.getpid(), "always: proven ones too"
    assert good[-1] == os.getpid()

    monkeypatch.setenv("CRASH_VERSION", "2")
    verdict = tune(user_file, newcomer)
    assert rejected(verdict)["crash"].reason == "crash"
    ran = notes(user_file)
    assert "crash" in [name for name, _ in ran]
    assert {process for name, process in ran if name == "good"} <= {os.getpid()}, (
        "what is proven runs in this process at once"
    )


def test_never_runs_all_here(user_file: Path, tune: Callable[..., Verdict]) -> None:
    user_file.write_text(FILE.replace("os.abort()", "raise RuntimeError('here')").replace("w.mul_(2)", "w = w * 2"))
    verdict = tune(user_file, isolate="never")
    assert rejected(verdict)["crash"].detail.endswith("RuntimeError: here")
    assert {process for _, process in notes(user_file)} == {os.getpid()}


def test_a_tactic_that_hung_is_not_waited_for_at_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    file = tmp_path / "hang_ops.py"
    file.write_text(
        "import time\nfrom pathlib import Path\nimport tunebook as tb\n"
        "@tb.op('user::hang', buckets={'x': {0: tb.pow2(max=4)}})\ndef hang(x):\n    return x + 1\n"
        "@hang.runner('hangs')\ndef hangs(x):\n"
        "    with Path(__file__).with_name('notes').open('a') as file: file.write('hangs 0\\n')\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setenv("TUNEBOOK_ISOLATE_TIMEOUT_S", "2")
    load_file(file)
    with tb.autotune(cache=tmp_path / "cache.json", budget_s=60.0, isolate="unproven") as block:
        OPS["user::hang"](torch.randn(4, 8))
    assert block.outcome is not None
    found = {rejected.detail for _, rejected in block.outcome.rejected}
    assert {reject.reason for _, reject in block.outcome.rejected} == {"timeout"}
    assert all(reject.harm for _, reject in block.outcome.rejected)
    assert len(block.outcome.rejected) == 3
    assert sum("not done within 2 s" in detail for detail in found) == 1
    assert sum("is not tried here" in detail for detail in found) == 1
    assert len(notes(file)) == 1


UNFIT = "first runs are not isolated"

ODD = """
import os
import tunebook as tb

@tb.op("user::odd", buckets={"x": {0: tb.pow2(max=1)}}, constants=("how",),
       describe=lambda args: tb.ops.Description((), ("fp32",), {"x.0": 1}))
def odd(x, how):
    return x + 1

@odd.runner("same")
def same(x, how):
    return x + 1

@tb.op("user::many", buckets={"x": {0: tb.pow2(max=1)}})
def many(x):
    return x + 1

@many.runner("changed", version=str(os.getpid()))
def changed(x):
    return x + 1

if os.environ["MAIN"] == str(os.getpid()):
    many.runner("lacking")(lambda x: x + 1)
"""


def unisolated(caplog: pytest.LogCaptureFixture, level: int = logging.DEBUG) -> list[str]:
    return [record.message for record in caplog.records if UNFIT in record.message and record.levelno >= level]


def test_what_a_worker_cannot_have_runs_here_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIN", str(os.getpid()))
    (tmp_path / "odd_ops.py").write_text(ODD)
    load_file(tmp_path / "odd_ops.py")

    @tb.op("user::here", buckets={"x": {0: tb.pow2(max=1)}})
    def here(x: Any) -> Any:
        return x + 1

    @here.runner("inside", version="1", space={"n": (1, 2)})
    def inside(x: Any, *, n: int) -> Any:
        return x + 1

    x = torch.randn(1, 4)
    with (
        caplog.at_level(logging.DEBUG),
        tb.autotune(cache=tmp_path / "c.json", budget_s=60.0, isolate="unproven") as block,
    ):
        here(x)
        OPS["user::odd"](x, frozenset((1, 2)))
        OPS["user::many"](x)
    (line,) = unisolated(caplog, logging.WARNING)
    assert "--isolate never" in line
    told = "\n".join(unisolated(caplog))
    assert "op user::odd, runner same: " + UNFIT in told
    assert "an argument is of type frozenset" in told
    assert "op user::many, runner changed" in told
    assert "its version is v:" in told
    assert "does not declare the runner lacking; declare it at the module's top level" in told
    assert told.count("op user::here, runner inside") == 2
    assert block.outcome is not None
    assert block.outcome.tuned == 3
    assert not block.outcome.rejected
    assert (block.session.first_runs.here, block.session.first_runs.runs) == (5, 0)


def test_files_that_cannot_be_imported_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIN", str(os.getpid()))
    for name, fails in (("raises", "raise ValueError('only once')"), ("ends", "os.abort()"), ("right", "pass")):
        (tmp_path / f"{name}_ops.py").write_text(
            f"import os\nimport tunebook as tb\nif os.environ['MAIN'] != str(os.getpid()): {fails}\n"
            f"@tb.op('user::{name}', buckets={{'x': {{0: tb.pow2(max=1)}}}})\ndef default(x):\n    return x + 1\n"
            "@default.runner('same')\ndef same(x):\n    return x + 1\n"
        )
        load_file(tmp_path / f"{name}_ops.py")
    with (
        caplog.at_level(logging.DEBUG),
        tb.autotune(cache=tmp_path / "c.json", budget_s=60.0, isolate="unproven") as block,
    ):
        for name in ("raises", "ends", "right"):
            OPS[f"user::{name}"](torch.randn(1, 4))
    told = "\n".join(unisolated(caplog))
    assert "raises_ops.py failed: " in told
    assert "ValueError: only once" in told
    assert "op user::ends, runner same" in told
    assert "the process that imports the tactics ended with code -6" in told
    assert "user::right" not in told
    assert (block.session.first_runs.here, block.session.first_runs.runs) == (2, 1)


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match="isolate='sometimes' is none of always, unproven, never"):
        tb.autotune(isolate="sometimes")


PROGRAM = """
import os, sys, logging
import torch
import tunebook as tb

@tb.op("program::add", buckets={"x": {0: tb.pow2(max=1)}})
def add(x):
    for _ in range(40):
        y = x + 1
    return y

@add.runner("good")
def good(x):
    return x + 1

@add.runner("crash")
def crash(x):
    if os.environ.get("CRASHES"):
        os.abort()
    raise RuntimeError("no crash")

def run():
    logging.basicConfig(level=logging.WARNING)
    with tb.autotune(cache="cache.json", budget_s=60.0) as block:
        add(torch.randn(1, 1 << 14))
    (verdict,) = block.outcome.verdicts.values()
    print(verdict.winner, *(rejected.reason for rejected in verdict.rejected))

"""


@pytest.mark.parametrize(
    ("end", "crashes", "says", "warns"),
    [
        ('if __name__ == "__main__":\n    run()\n', "1", "good crash", ""),
        ("run()\n", "", "good runtime", 'put what it runs under `if __name__ == "__main__":`'),
    ],
)
def test_a_program_that_declares_its_own_op(
    tmp_path: Path,
    cli_environment: Callable[..., dict[str, str]],
    end: str,
    crashes: str,
    says: str,
    warns: str,
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM + end)
    environment = cli_environment(tmp_path / "home", CRASHES=crashes)
    del environment["TUNEBOOK_ISOLATE"]
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == says
    assert warns in done.stderr
    assert (UNFIT in done.stderr) == bool(warns)
