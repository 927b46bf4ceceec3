"""Samples with a flush: what lies inside the timed parts and what does not, on a made-up clock; and the measuring policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.devices import CpuDevice, CudaDevice
from tunebook.errors import UsageError
from tunebook.measure import MeasurementPolicy, calibrate, sample

FLUSH_S = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        self.log.append("clock")
        return self.now

    def synchronize(self) -> None:
        self.log.append("wait")


class Cold:
    """A tactic whose call on replica r takes r + 1 seconds; its flush takes very long."""

    name = "cold"
    bytes = 0

    def __init__(self, clock: Clock, replicas: int, *, flushes: bool = True) -> None:
        self._clock = clock
        self.calls: Sequence[Callable[[], Any]] = [lambda r=r: self._run(r) for r in range(replicas)]  # type: ignore[misc]
        self.flush: Callable[[], None] | None = self._flush if flushes else None

    def _run(self, replica: int) -> None:
        self._clock.log.append(str(replica))
        self._clock.now += replica + 1

    def _flush(self) -> None:
        self._clock.log.append("flush")
        self._clock.now += FLUSH_S


def test_a_lone_layer_is_flushed_before_every_call_and_outside_the_timed_part() -> None:
    clock = Clock()
    assert sample(Cold(clock, 1), clock, inner=3, offset=0) == 1.0
    assert clock.log == ["flush", "wait", "clock", "0", "wait", "clock"] * 3


def test_without_a_flush_all_calls_are_one_timed_part() -> None:
    clock = Clock()
    assert sample(Cold(clock, 2, flushes=False), clock, inner=4, offset=0) == 1.5
    assert clock.log == ["wait", "clock", "0", "1", "0", "1", "wait", "clock"]


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 9))
def test_between_two_flushes_no_replica_is_called_twice_and_no_flush_is_timed(
    replicas: int, inner: int, offset: int
) -> None:
    clock = Clock()
    seconds = sample(Cold(clock, replicas), clock, inner, offset)
    order = [(offset + i) % replicas for i in range(inner)]
    assert seconds == pytest.approx(sum(r + 1 for r in order) / inner), "the mean over all calls, without the flushes"
    assert [int(word) for word in clock.log if word.isdigit()] == order
    turns = " ".join(clock.log).split("flush")[1:]
    assert len(turns) == -(-inner // replicas), "one flush a turn: more would only cost time"
    for turn in turns:
        called = [word for word in turn.split() if word.isdigit()]
        assert len(set(called)) == len(called)
        assert turn.split()[:2] == ["wait", "clock"], "what the flush started has ended when the clock is read"
        assert turn.split()[-2:] == ["wait", "clock"]
    assert all(pair != ("clock", "clock") for pair in pairwise(clock.log))


@pytest.mark.parametrize("replicas", [1, 3])
def test_flushes_limit_how_many_short_calls_make_a_sample(replicas: int) -> None:
    """A flush costs more than a short call: eight turns are enough, where else hundreds of calls would make a sample."""
    clock = Clock()
    assert calibrate(Cold(clock, replicas), clock, min_sample_s=1000.0).inner == 8 * replicas
    assert calibrate(Cold(clock, replicas, flushes=False), clock, min_sample_s=1000.0).inner >= 400


def test_policies_have_names_and_captures_need_a_device_that_does_them() -> None:
    cpu, cuda = CpuDevice(), CudaDevice(0, object())
    assert MeasurementPolicy.of("eager", cpu) is MeasurementPolicy.EAGER
    assert MeasurementPolicy.of(MeasurementPolicy.EAGER, cpu) is MeasurementPolicy.EAGER
    assert MeasurementPolicy.of("captured", cuda) is MeasurementPolicy.CAPTURED
    with pytest.raises(UsageError, match=r"'captured'.*CPU.*'eager'"):
        MeasurementPolicy.of("captured", cpu)
    with pytest.raises(UsageError, match=r"'graph'.*eager, captured"):
        MeasurementPolicy.of("graph", cuda)
