"""Fault scenarios of tactics: twelve kinds of bad ones in one tuning, and a tuning that is killed while one of them runs.

Shared by soak.py and tests/faults/test_tactics.py. The tuning is a process of its own; what it started, and all that this
started in turn, is known by a variable that processes inherit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from _faults import Figure

import tunebook

MARK = "FAULTS_MARK"
NOTE = "FAULTS_NOTE"
#: TUNEBOOK_ISOLATE_TIMEOUT_S of the tuning with twelve bad tactics, two of which hang.
TIMEOUT_S = 5.0
#: A scenario that has not ended by then hangs.
DEADLINE_S = 300.0

#: By runner, the reason and words of the detail that its rejection must have.
EXPECTED = {
    "segfault": ("crash", "SIGSEGV"),
    "abort": ("crash", "SIGABRT"),
    "exits": ("crash", "exit code 7"),
    "hangs": ("timeout", "not done within"),
    "hangs_with_child": ("timeout", "not done within"),
    "fills_memory": ("memory", "MemoryError"),
    "wrong": ("correctness", "off by"),
    "nan": ("correctness", "NaN"),
    "changes_input": ("correctness", "argument 0 was changed"),
    "changes_weights": ("correctness", "the weights were changed"),
    "raises": ("runtime", "no such tile"),
    "same_memory": ("correctness", "the same memory"),
}


def bad_tactics() -> list[Figure]:
    """One tuning with one good tactic and twelve kinds of bad ones."""
    with tempfile.TemporaryDirectory() as place:
        mark = uuid.uuid4().hex
        process = _start(Path(place), mark, TUNEBOOK_ISOLATE_TIMEOUT_S=str(TIMEOUT_S), TUNEBOOK_MEMORY_LIMIT_GB="0.25")
        try:
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
        left = len(_marked(mark)) + len(list((Path(place) / "tmp").iterdir()))
        told: dict[str, Any] = json.loads(out) if process.returncode == 0 else {"rejected": {}, "winner": err[-500:]}
    right = sum(
        told["rejected"].get(name, ["", ""])[0] == reason and words in told["rejected"][name][1]
        for name, (reason, words) in EXPECTED.items()
    )
    wrong = {name: told["rejected"].get(name) for name in EXPECTED if name not in told["rejected"]}
    goal = f"{len(EXPECTED)} of {len(EXPECTED)}" + (f"; not rejected: {', '.join(wrong)}" if wrong else "")
    return [
        Figure(name="bad_tactics_rejected_rightly", value=right, goal=goal, met=right == len(EXPECTED)),
        Figure(name="bad_tactics_winner", value=told["winner"], goal="good", met=told["winner"] == "good"),
        Figure(
            name="bad_tactics_left_running",
            value=left + told.get("running", 0),
            goal="0 processes and files, when the tuning has ended and when its process has",
            met=left + told.get("running", 1) == 0,
        ),
    ]


def killed_tuning() -> list[Figure]:
    """A tuning that is killed while a tactic hangs that has a child in another session: nothing may be left running."""
    with tempfile.TemporaryDirectory() as place:
        note, mark = Path(place) / "note", uuid.uuid4().hex
        process = _start(
            Path(place), mark, "hangs_with_child", **{NOTE: str(note), "TUNEBOOK_ISOLATE_TIMEOUT_S": "600"}
        )
        try:
            hangs = _until(note.exists)
            before = len(_marked(mark)) if hangs else 0
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        _until(lambda: not _marked(mark), 30.0)
        left = _marked(mark)
        for one in left:
            os.kill(one, signal.SIGKILL)
        files = len(list((Path(place) / "tmp").iterdir()))
    # the tuning, its supervisor, the worker and the child of the tactic's child
    return [
        Figure(name="killed_tuning_processes_before", value=before, goal=">= 4", met=before >= 4),
        Figure(name="killed_tuning_left_running", value=len(left) + files, goal="0", met=len(left) + files == 0),
    ]


def _start(place: Path, mark: str, *runners: str, **variables: str) -> subprocess.Popen[str]:
    """A process that tunes the op of _bad_tactics.py, of whose runners these, and prints what came of it as JSON."""
    (place / "tmp").mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TUNEBOOK_")}
    environment = {
        **inherited,
        "PYTHONPATH": str(Path(tunebook.__file__).parents[1]),
        "TUNEBOOK_CACHE_DIR": str(place / "cache"),
        "TUNEBOOK_THREADS": "1",
        "TMPDIR": str(place / "tmp"),
        MARK: mark,
        **variables,
    }
    command = [sys.executable, str(Path(__file__).resolve()), *runners]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _marked(mark: str) -> list[int]:
    """The processes that run and carry the mark."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            state = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            carries = f"{MARK}={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if carries and state != "Z":
            found.append(int(name))
    return found


def _until(holds: Any, seconds: float = DEADLINE_S) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return bool(holds())


def tune(runners: list[str]) -> dict[str, Any]:
    """In the process of its own: one tuning, with the isolation that is the default."""
    import torch
    from _bad_tactics import WIDTH, scale

    x, w = torch.randn(1, WIDTH), torch.randn(WIDTH + 1)
    kept = w.clone()
    with tunebook.autotune(budget_s=1000.0, only_runners=runners) as block:
        scale(x, w)
    assert block.outcome is not None
    (verdict,) = block.outcome.verdicts.values()
    rejected = {one.tactic: (one.reason, one.detail) for one in verdict.rejected}
    if not torch.equal(w, kept):
        del rejected["changes_weights"]  # it has changed the model's own
    others = [process for process in _marked(os.environ[MARK]) if process != os.getpid()]
    return {"winner": verdict.winner, "rejected": rejected, "running": len(others)}


if __name__ == "__main__":
    print(json.dumps(tune(sys.argv[1:])))
