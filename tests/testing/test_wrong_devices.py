"""Devices that break a promise are told by name, with the remedy, in one line."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from tunebook.devices import CpuDevice
from tunebook.records import Environment
from tunebook.testing import ContractError, check_device


def said(**wrong: Any) -> str:
    """What the check says of the CPU with these members instead of its own."""
    device = type("Wrong", (CpuDevice,), {})()
    for name, value in wrong.items():
        setattr(device, name, value)
    with pytest.raises(ContractError) as error:
        check_device(device)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"device {wrong.get('name', 'cpu')}: ")
    assert ";" in text, "no remedy"
    return text


def counting() -> Any:
    numbers = itertools.count()
    return lambda: float(next(numbers))


def backwards() -> float:
    return -time.perf_counter()


def test_a_clock_that_goes_back_over_other_work() -> None:
    start = [0.0]

    @contextmanager
    def stream() -> Iterator[None]:
        start[0] -= 0.5
        yield

    text = said(clock=lambda: time.perf_counter() + start[0], stream=stream)
    assert "its clock goes back over work in its stream" in text


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        (time.perf_counter_ns, "its clock returns "),
        (backwards, "its clock goes back"),
        (lambda: 1000 * time.perf_counter(), "its clock counts "),
        (lambda: 1.0, "its clock counts 0 for a pause"),
        (counting(), "its clock counts 1 for a pause"),
        (lambda: float("nan"), "its clock returns nan"),
        (lambda: 1 // 0, "its clock raises ZeroDivisionError"),
    ],
)
def test_a_clock_that_is_none(clock: Any, words: str) -> None:
    assert words in said(clock=clock)


def test_a_name_that_torch_does_not_know() -> None:
    assert "its name is none of torch's" in said(name="nowhere:3")


def test_waiting_that_fails() -> None:
    assert "synchronize raises ZeroDivisionError" in said(synchronize=lambda: 1 // 0)


def test_a_stream_that_swallows_errors() -> None:
    @contextmanager
    def quiet() -> Iterator[None]:
        with suppress(Exception):
            yield

    assert "an error in its stream's block vanishes" in said(stream=quiet)


def test_facts_that_change_or_are_no_text() -> None:
    load = itertools.count()
    assert "hard facts change from one call to the next (load: 0 ≠ 1)" in said(
        environment=lambda: Environment(hard={"device": "cpu", "load": str(next(load))})
    )
    assert "its hard fact 'cores' is 2" in said(environment=lambda: Environment(hard={"cores": 2}))  # type: ignore[dict-item]
    assert "environment returns a dict" in said(environment=lambda: {"cores": "2"})


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("free_memory", 0, "free_memory is 0"),
        ("free_memory", 1.5e9, "free_memory is 1500000000.0"),
        ("cache_bytes", -1, "cache_bytes is -1"),
        ("cache_bytes", None, "cache_bytes is None"),
        ("no_capture", "", "no_capture is ''"),
        ("no_capture", None, "capture raises UsageError"),
    ],
)
def test_figures_and_reasons_that_are_none(member: str, value: object, words: str) -> None:
    assert words in said(**{member: lambda: value})


def test_a_flush_without_bytes() -> None:
    def flush() -> Any:
        made = lambda: None  # noqa: E731 - an object that can be called and has attributes
        made.bytes = -5  # type: ignore[attr-defined]
        return made

    assert "the bytes of its flush are -5" in said(flush=flush)


def test_a_capture_that_is_wrong_or_not_told_of() -> None:
    assert "it captures, and no_capture says" in said(capture=lambda call: call)
    assert "capture raises OSError" in said(capture=_failing)
    zero = torch.zeros(8)
    assert "a captured call gives another result" in said(no_capture=lambda: None, capture=lambda call: lambda: zero)
    assert "a replay does not run the call again" in said(no_capture=lambda: None, capture=_frozen)
    assert "an error of a call that is captured vanishes" in said(no_capture=lambda: None, capture=_silent)
    assert "capture raises OSError" in said(no_capture=lambda: None, capture=_renaming)


def _frozen(call: Any) -> Any:
    result = call()
    return lambda: result


def _silent(call: Any) -> Any:
    def replay() -> Any:
        with suppress(Exception):
            return call()

    return replay


def _renaming(call: Any) -> Any:
    try:
        call()
    except Exception as error:
        raise OSError("broken") from error
    return call


def _failing(call: Any) -> Any:
    raise OSError("no graphs")


def test_a_device_with_graphs_passes() -> None:
    device: Any = CpuDevice()
    device.no_capture, device.capture = lambda: None, lambda call: call
    check_device(device)
