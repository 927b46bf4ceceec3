"""Correctness: a tactic's output against the default's on the same inputs, and its inputs untouched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunebook.devices import sticky
from tunebook.measure._candidate import Clock
from tunebook.measure._compare import compare, is_tensor
from tunebook.records import Reason

#: The detail of the finding where a tactic wrote over the constants.
WEIGHTS_CHANGED = "the weights were changed by the call"

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


#: A tactic that takes so many times the default's seconds on live input, and again, has no chance and is not checked further.
TIMEOUT_RATIO = 10.0
#: Shorter calls than this, in seconds, are worth no haste.
TIMEOUT_S = 0.1


@dataclass(frozen=True)
class Case:
    """Inputs to check on: the arguments, the default's output on them, and a word for messages ("M=16").

    `seconds` is what the default took; a tactic that takes far longer is not checked further. None: it may take its time.
    `agree` stands for `compare` where an op has more than one right output.
    """

    args: tuple[Any, ...]
    expected: Any
    label: str
    seconds: float | None = None
    agree: Callable[[Any, Any, Sequence[Any]], float | str] | None = None

    def compared(self, got: Any) -> float | str:
        """The greatest relative error of an output for these arguments, or what is wrong with it."""
        if self.agree is None:
            return compare(got, self.expected)
        return self.agree(got, self.expected, self.args)


@dataclass(frozen=True)
class Finding:
    """Why a tactic is refused, in a class and in words.

    `ran`: not on an estimate alone; `harm`: its process ended by it, had to be ended, or ran out of memory.
    """

    reason: Reason
    detail: str
    ran: bool = True
    harm: bool = False


@dataclass(frozen=True)
class Passed:
    """A tactic that gave the default's output: the greatest relative error of a row, and the last call's seconds."""

    error: float
    seconds: float


@dataclass(frozen=True)
class Reference:
    """What tactics are checked against: the cases, and the constants with the checksums of their bits."""

    cases: tuple[Case, ...]
    constants: tuple[Any, ...]
    checksums: tuple[Any, ...]

    @classmethod
    def of(cls, cases: Sequence[Case], constants: Sequence[Any]) -> Reference:
        return cls(tuple(cases), tuple(constants), tuple(_checksum(value) for value in constants))


def check(
    call: Callable[..., Any], reference: Reference, clock: Clock, *, before: Callable[[int], None] = lambda number: None
) -> Finding | Passed:
    """Run `call` once on every case, in order. What it passed with, or the reason why the tactic is refused.

    `before(number)` is called before each case; a single one is run twice.

    Uninitialised memory that the tactic allocates through torch is filled with NaN, so that a part that it forgets to
    write is seen. Arguments are compared with a copy afterwards, constants by a checksum of their bits.
    """
    worst = seconds = 0.0
    held: list[Any] = []
    cases = reference.cases if len(reference.cases) > 1 else reference.cases * 2
    for number, case in enumerate(cases):
        args = tuple(_copy(value) for value in case.args)
        before(number)
        try:
            with _filled_with_nan():
                got, seconds = _timed(call, args, clock)
                if _too_long(seconds, case):  # a first call may load or compile what the next one has
                    got, seconds = _timed(call, args, clock)
            if _too_long(seconds, case):
                return Finding(
                    "timeout", f"{case.label}: takes {seconds:.2g} s, {_ratio(seconds, case):.0f} times the default"
                )
            compared = case.compared(got)
            unchanged = all(_same(value, original) for value, original in zip(args, case.args, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever a tactic raises, or returns that cannot be compared
            return failure(error, case.label)
        if isinstance(compared, str):
            return Finding("correctness", f"{case.label}: {compared}")
        worst = max(worst, compared)
        if not unchanged:
            changed = [
                i for i, (value, original) in enumerate(zip(args, case.args, strict=True)) if not _same(value, original)
            ]
            return Finding("correctness", f"{case.label}: argument {changed[0]} was changed by the call")
        if _storages(got) & {place for earlier in held for place in _storages(earlier)}:
            return Finding(
                "correctness", "it returns the same memory at each call, so a result is lost at the next one"
            )
        held.append(got)
    if tuple(_checksum(value) for value in reference.constants) != reference.checksums:
        return Finding("correctness", WEIGHTS_CHANGED)
    return Passed(worst, seconds)


def _timed(call: Callable[..., Any], args: tuple[Any, ...], clock: Clock) -> tuple[Any, float]:
    clock.synchronize()
    start = clock.clock()
    got = call(*args)
    clock.synchronize()
    return got, clock.clock() - start


def _too_long(seconds: float, case: Case) -> bool:
    return case.seconds is not None and seconds > max(TIMEOUT_S, TIMEOUT_RATIO * case.seconds)


def _ratio(seconds: float, case: Case) -> float:
    return seconds / max(case.seconds or 0.0, 1e-9)


def failure(error: Exception, where: str) -> Finding:
    """What an exception of a tactic says: out of memory (PyTorch raises RuntimeError for that on the CPU), a device that is
    spoilt for the process, which is a crash, or a failure."""
    if (words := sticky(error)) is not None:
        return Finding("crash", f"{where}: {words}", harm=True)
    lines = str(error).strip().splitlines()
    memory = isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)
    text = lines[0] if lines else "out of memory" if memory else "no message"
    return Finding("memory" if memory else "runtime", f"{where}: {type(error).__name__}: {text}")


@contextmanager
def _filled_with_nan() -> Iterator[None]:
    """torch.empty gives NaN inside: PyTorch does so for deterministic algorithms, which are asked for as a wish only."""
    import torch

    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # a module whose attributes are properties, which the types do not show
    fill = settings.fill_uninitialized_memory
    # not torch.use_deterministic_algorithms: that loads the whole compiler, which takes more than a second
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # an operation that has no deterministic form warns; that is not the question
            yield
    finally:
        torch._C._set_deterministic_algorithms(mode, warn_only=warn)
        settings.fill_uninitialized_memory = fill


def _checksum(value: Any) -> Any:
    """Sums of a tensor's bits along the rows and along the columns of a square view: a change, a swap and a shift show.

    Two changes that cancel in both sums at once pass unseen; a kernel does not do that by accident.
    """
    import torch

    if not is_tensor(value):
        return value
    bits = value.detach().reshape(-1)
    whole = bits.nbytes % 8 == 0 and bits.storage_offset() * bits.element_size() % 8 == 0
    bits = bits.view(torch.int64 if whole else torch.uint8)
    side = max(1, int(bits.numel() ** 0.5))
    square = bits[: side * (bits.numel() // side)].view(-1, side)
    rest = bits[square.numel() :]
    sums = [part.sum(dim=dim, dtype=torch.int64) for part, dim in ((square, 0), (square, 1), (rest, 0))]
    return (tuple(value.stride()), *(part.cpu().numpy().tobytes() for part in sums))


def _copy(value: Any) -> Any:
    return value.clone() if is_tensor(value) else value


def _storages(value: Any) -> set[int]:
    """Where the tensors of an output lie; an empty one lies nowhere."""
    if isinstance(value, tuple | list):
        return {place for item in value for place in _storages(item)}
    return {value.untyped_storage().data_ptr()} if is_tensor(value) and value.numel() else set()


def _same(one: Any, other: Any) -> bool:
    """Equal bit by bit as far as a comparison can tell: NaN equals NaN."""
    import torch

    if not is_tensor(one):
        return True
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype and torch.equal(one, other):
        return True
    equal = one == other
    if one.is_floating_point():
        equal |= torch.isnan(one) & torch.isnan(other)
    return bool(equal.all())
