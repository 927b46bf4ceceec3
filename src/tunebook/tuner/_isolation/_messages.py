"""What the tuning and its worker tell each other about tactics. Nothing of it is code."""

from __future__ import annotations

import msgspec

from tunebook.records import Reason


class TensorAt(msgspec.Struct, tag="t", frozen=True, kw_only=True):
    """A tensor in shared memory: `bytes` from `offset` on hold its elements, `stride` (in elements) apart.

    `device` is where it belongs: it is copied there.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    bytes: int
    device: str = "cpu"


class Items(msgspec.Struct, tag="i", frozen=True, kw_only=True):
    """A tuple, or a list."""

    items: tuple[Value, ...]
    is_list: bool = False


Value = None | bool | int | float | str | TensorAt | Items


class CaseAt(msgspec.Struct, frozen=True, kw_only=True):
    """A `measure.Case`."""

    args: tuple[Value, ...]
    expected: Value
    label: str
    seconds: float | None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A module that declares ops or runners: by name, by the path of a file that the user gave, or the program itself.

    `main`: `name` or `path` is the program that was started; it is run as `multiprocessing` does, under ``__mp_main__``.
    """

    name: str = ""
    path: str = ""
    main: bool = False


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Import these, and reckon the versions of these runners by op, which each worker then has."""

    sources: tuple[Source, ...]
    runners: dict[str, tuple[str, ...]]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Why a module could not be imported, by its name."""

    failed: dict[str, str] = {}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What torch is set to in the tuning's process."""

    threads: int
    precision: str
    dtype: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Run a tactic on each case. `layer` and `problem` number the shared memory of the constants and of the cases.

    Memory that the worker does not know yet comes with the job, in the order of `comes`; `goes` are numbers that it forgets.
    `memory`: bytes that a call may take; `keep`: bytes of prepared weights that the worker may keep for later.
    """

    op: str
    tactic: str
    version: str
    layer: int
    constants: tuple[Value, ...]
    problem: int
    cases: tuple[CaseAt, ...]
    comes: tuple[int, ...]
    goes: tuple[int, ...]
    memory: int | None
    keep: int
    device: str
    setting: Setting


class Right(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """It passed: a `measure.Passed`."""

    error: float
    seconds: float


class Wrong(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """It did not: a `measure.Finding`."""

    reason: Reason
    detail: str


class Unfit(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The worker cannot run it: the op, the runner or the tactic is not what the tuning has."""

    why: str


Answer = Right | Wrong | Unfit

#: The stages of a job; the cases follow.
STARTING, PREPARING, FIRST_CASE = 0, 1, 2
