"""Samples that the tests of the store share."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from tunebook import records
from tunebook.records import Dim, Environment, Header, Member, Offered, Plan, Problem, Verdict


class MakeVerdict(Protocol):
    def __call__(self, size: int = 16, *, op: str = "linear", winner: str = ..., speedup: float = 1.5) -> Verdict: ...


@pytest.fixture(scope="session")
def environment() -> Environment:
    return Environment(hard={"device": "cpu", "isa": "avx512", "cores": "8"}, soft={"torch": "2.13.0"})


@pytest.fixture(scope="session")
def make_verdict() -> MakeVerdict:
    def make(
        size: int = 16, *, op: str = "linear", winner: str = "onednn[batch_hint=16]", speedup: float = 1.5
    ) -> Verdict:
        problem = Problem(op=op, attrs=(("N", "64"), ("K", "32")), dtypes=("bf16",), dims=(Dim(name="M", size=size),))
        return Verdict(
            problem=problem.key,
            winner=winner,
            status="proven",
            speedup=speedup,
            low=speedup * 0.9,
            high=speedup * 1.1,
            seconds=1e-4,
            frontier=(
                Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),
                Member(tactic="default", ratio=1.5, low=1.4, high=1.6),
            ),
            offered={winner.partition("[")[0]: Offered(version="1", space="ab12")},
        )

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    def make(fingerprint: str = "f00d", **fields: object) -> Plan:
        tactics = {"linear|N=64|bf16|M≤16": "default"}
        return Plan(model="tiny-moe", fingerprint=fingerprint, tactics=tactics, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def header(environment: Environment) -> Header:
    return Header(
        session="0123456789ab",
        started="2025-01-02T03:04:05+00:00",
        policy="fresh",
        environment=environment,
        version="0.1.0",
        model="tiny-moe",
        command=("tunebook", "tune"),
    )


#: For another process: the kernel answers flock with an error from now on, or with 0 does nothing and says that it has locked.
#: So a file system without locks, and one whose locks other hosts do not see, can be had anywhere (Linux, seccomp).
_FLOCK_ANSWERS = """
import ctypes, platform

class Operation(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("operations", ctypes.POINTER(Operation))]

def flock_answers(code):
    call = {"x86_64": 73, "aarch64": 32}[platform.machine()]
    load, compare, answer = 0x20, 0x15, 0x06
    operations = (Operation * 4)(
        Operation(load, 0, 0, 0), Operation(compare, 0, 1, call), Operation(answer, 0, 0, 0x50000 | code),
        Operation(answer, 0, 0, 0x7FFF0000),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(4, operations)), 0, 0) == 0, ctypes.get_errno()
"""

_BEGIN = """
import os, sys
from pathlib import Path
import msgspec
from tunebook.records import Environment, Verdict
from tunebook.store import Location, publish, read_cache

environment = msgspec.json.decode(sys.argv[2], type=Environment)
template = msgspec.json.decode(sys.argv[3], type=Verdict)
location = Location.of(environment, sys.argv[1])

def put(size):
    key = template.problem.rpartition("16")[0] + str(size)
    return publish(location, environment, {key: msgspec.structs.replace(template, problem=key)}, {})
"""


class Child(Protocol):
    def __call__(
        self, code: str, cache: Path, *arguments: object, flock: int | None = None
    ) -> subprocess.Popen[str]: ...


@pytest.fixture
def child(environment: Environment, make_verdict: MakeVerdict) -> Child:
    """``child(code, cache, …, flock=answer)``: another process, in which ``put(n)`` publishes a verdict on the size n.

    `flock`: the error with which the kernel answers every request for a lock there; 0 says yes to all of them.
    """

    def start(code: str, cache: Path, *arguments: object, flock: int | None = None) -> subprocess.Popen[str]:
        if flock is not None and (sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64")):
            pytest.skip("a system call's answer is changed with seccomp, by its number on x86_64 and aarch64")
        begin = "" if flock is None else f"{_FLOCK_ANSWERS}\nflock_answers({flock})\n"
        given = [msgspec.json.encode(one).decode() for one in (environment, make_verdict())]
        return subprocess.Popen(
            [sys.executable, "-c", f"{begin}{_BEGIN}\n{code}", str(cache), *given, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(Path(records.__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def done() -> Callable[[subprocess.Popen[str]], str]:
    """What a child printed; it must have ended well."""

    def wait(process: subprocess.Popen[str]) -> str:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    return wait
