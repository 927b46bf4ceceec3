"""Correctness: what an op's runners have to agree on, found by calling its default; nothing is declared of it anywhere.

An op's output is what it returns, and what its default writes into the floating-point tensors that it was given, as far as
it writes the same again into fresh memory. All other tensors that it writes to are scratch; the rest has to stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunebook.devices import Device
from tunebook.integrations.flashinfer._names import FALLBACK
from tunebook.integrations.flashinfer._problems import Found
from tunebook.measure import Case, Reference, compare

#: The caller's own tensors are copied where their bytes, times this, are free.
COPY_SHARE = 4

#: A place of a tensor among a call's arguments: the number of an input, or the name of a keyword.
Slot = int | str


@dataclass(frozen=True)
class Ground:
    """How the tactics of one problem are checked, on these tensors.

    `reference` is None where the op allows no check, and `why` says so. `outputs` get fresh memory at each call; `varied` are
    handed over by the reference's case.
    """

    one: Found
    tensors: list[Any]
    reference: Reference | None = None
    why: str = ""
    outputs: tuple[Slot, ...] = ()
    varied: tuple[Slot, ...] = ()
    seconds: float = 0.0  #: what the default took, called as tactics are when they are checked
    copies: tuple[tuple[Any, Any], ...] = ()  #: of the caller's own tensors, beside each

    def restore(self) -> bool:
        """Undo what a tactic did to the caller's own tensors; False where there is no copy of them."""
        import torch

        with torch.inference_mode():  # in which all may be written, also those that were made in it
            for tensor, copy in self.copies:
                tensor.copy_(copy)
        return bool(self.copies)

    def call(self, runner: Any, tactic: Any) -> Callable[..., tuple[Any, ...]]:
        """The tactic as a function of the varied tensors: what it returned, and what it wrote."""

        def called(*args: Any) -> tuple[Any, ...]:
            returned, written = self.outcome(runner, tactic, dict(zip(self.varied, args, strict=True)))
            return (*returned, *written.values())

        return called

    def outcome(self, runner: Any, tactic: Any, given: Mapping[Slot, Any]) -> tuple[tuple[Any, ...], dict[Slot, Any]]:
        """Call with `given` in its places; what was returned, and what was written into each of the outputs."""
        held = _held(self.one, self.tensors)
        fresh = {slot: _fresh(held[slot]) for slot in self.outputs}
        put = {**given, **fresh}
        inputs = [put.get(place, value) for place, value in enumerate(self.tensors)]
        kwargs = {name: put.get(name, value) for name, value in self.one.kwargs.items()}
        returned = _returned(runner(inputs, tactic=tactic, **kwargs))
        return returned, {slot: _comparable(value) for slot, value in fresh.items()}


def ground_of(one: Found, tensors: list[Any], device: Device) -> Ground:
    """Find out by two calls of the default what is compared. Raises what the first of them raises."""
    held = _held(one, tensors)
    runner = one.runners[0]
    before = Reference.of((), list(held.values())).checksums
    returned = _returned(runner(tensors, tactic=FALLBACK, **one.kwargs))
    device.synchronize()
    after = Reference.of((), list(held.values())).checksums
    changed = [slot for slot, was, now in zip(held, before, after, strict=True) if was != now]
    written = {slot: _comparable(held[slot].clone()) for slot in changed if held[slot].dtype.is_floating_point}
    written = {slot: value for slot, value in written.items() if value is not None}
    first = Ground(one, tensors, outputs=tuple(written))
    try:
        start = device.clock()
        again, rewritten = first.outcome(runner, FALLBACK, {})
        device.synchronize()
        seconds = max(device.clock() - start, 1e-9)
    except Exception as error:  # noqa: BLE001 - the op needs what lay in the memory that it writes to
        return Ground(one, tensors, why=f"its default fails on fresh memory: {type(error).__name__}")
    if isinstance(compare(again, returned), str):
        return Ground(one, tensors, why="its default's output differs from call to call")
    outputs = tuple(slot for slot, value in written.items() if not isinstance(compare(rewritten[slot], value), str))
    expected = (*returned, *(written[slot] for slot in outputs))
    if not expected:
        return Ground(one, tensors, why="it gives nothing that can be compared")
    varied = tuple(s for s in held if isinstance(s, int) and one.made_anew(s) and s not in changed)
    constants = [value for slot, value in held.items() if slot not in changed and slot not in varied]
    held_bytes = sum(value.nbytes for value in constants)
    affordable = held_bytes * COPY_SHARE <= device.free_memory()
    size = ", ".join(f"{dim.name}={dim.size}" for dim in one.problem.dims) or "its only size"
    case = Case(tuple(held[slot] for slot in varied), expected, size, seconds)
    return Ground(
        one,
        tensors,
        Reference.of([case], constants),
        outputs=outputs,
        varied=varied,
        seconds=seconds,
        copies=tuple((value, value.clone()) for value in constants) if affordable else (),
    )


def _held(one: Found, tensors: list[Any]) -> dict[Slot, Any]:
    """The tensors among the arguments, each memory once."""
    found: dict[Slot, Any] = {}
    seen: set[int] = set()
    named: list[tuple[Slot, Any]] = [*enumerate(tensors), *one.kwargs.items()]
    for slot, value in named:
        if hasattr(value, "untyped_storage") and value.numel() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            found[slot] = value
    return found


def _returned(value: Any) -> tuple[Any, ...]:
    """The tensors that a call returned, copied (FlashInfer's runners may return memory of their own), that can be compared."""
    if isinstance(value, tuple | list):
        return tuple(tensor for item in value for tensor in _returned(item))
    comparable = _comparable(value.clone()) if hasattr(value, "untyped_storage") else None
    return () if comparable is None else (comparable,)


def _comparable(value: Any) -> Any:
    """8-bit floats as bfloat16, since torch compares few of them; None for bytes, which may be pairs of 4-bit floats: a
    difference in the last place is none."""
    import torch

    if value.dtype.itemsize > 1 or value.dtype == torch.bool:
        return value
    if not value.dtype.is_floating_point:
        return None
    try:
        return value.to(torch.bfloat16)
    except (RuntimeError, NotImplementedError):  # pairs of 4-bit floats
        return None


def _fresh(value: Any) -> Any:
    import torch

    fresh = torch.empty_like(value)
    return fresh.fill_(float("nan")) if fresh.dtype.itemsize > 1 else fresh
