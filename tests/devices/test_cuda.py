"""The CUDA device over a driver that is a stand-in for hardware that is not here: time, graphs, memory, errors that stay."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunebook.devices import CudaDevice
from tunebook.devices._cuda import DeviceLostError, sticky
from tunebook.errors import TunebookError, UsageError
from tunebook.measure import failure, sample

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.devices.cuda_driver import LAUNCH, Driver, error_of  # noqa: E402 - found from the root


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def device(driver: Driver) -> CudaDevice:
    return CudaDevice(0, driver)


# time


def test_calls_return_before_they_have_ended_and_synchronize_waits(driver: Driver, device: CudaDevice) -> None:
    driver.launch(us=1000.0)
    assert driver.host == LAUNCH
    device.synchronize()
    assert driver.host >= 1000.0


def test_events_tell_what_the_device_took_and_not_the_host(driver: Driver, device: CudaDevice) -> None:
    calls = [lambda: driver.launch(us=20.0)] * 4
    seconds = device.seconds(calls, before=lambda: driver.launch("flush", us=100.0))
    assert seconds == pytest.approx(80e-6), "neither the flush, nor starting the calls, nor waiting is in it"


def test_what_python_cannot_start_in_time_is_in_it(driver: Driver, device: CudaDevice) -> None:
    """Without a flush the device is idle at the first event, and kernels shorter than a launch wait for the next one."""
    assert device.seconds([lambda: driver.launch(us=1.0)] * 10) == pytest.approx((10 * LAUNCH + 1.0) * 1e-6)


def test_events_follow_the_current_stream(driver: Driver, device: CudaDevice) -> None:
    driver.default.free = 5000.0  # somebody's work on another stream, which is ended first
    with device.stream():
        seconds = device.seconds([lambda: driver.launch(us=30.0)], before=lambda: driver.launch("flush", us=100.0))
    assert seconds == pytest.approx(30e-6)
    assert driver.ran == ["flush on side 1", "kernel on side 1"]


def test_no_calls_take_the_least_time_there_is(device: CudaDevice) -> None:
    assert device.seconds([]) == 1e-9, "a sample of nothing has no logarithm"


@dataclass
class Racer:
    """A candidate of a race."""

    calls: Sequence[Callable[[], Any]]
    flush: Callable[[], None] | None = None
    name: str = "racer"
    bytes: int = field(default=0)


def test_the_flush_is_outside_of_what_a_race_times(
    driver: Driver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "clock", lambda: driver.host / 1e6)
    racer = Racer([lambda: driver.launch(us=500.0)] * 2, lambda: driver.launch("flush", us=10_000.0))
    seconds = sample(racer, device, inner=4, offset=0)
    assert 500e-6 <= seconds < 520e-6
    assert driver.ran == ["flush on default", "kernel on default", "kernel on default"] * 2


# streams


def test_a_stream_of_its_own_is_ordered_with_the_current_one(driver: Driver, device: CudaDevice) -> None:
    driver.launch("before", us=100.0)
    with device.stream():
        driver.launch("own", us=100.0)
    driver.launch("after", us=100.0)
    assert driver.ran == ["before on default", "own on side 1", "after on default"]
    assert driver.default.free == LAUNCH + 300.0, "one after the other, though on two streams"


# graphs


def test_a_call_is_captured_after_a_warm_up_and_runs_with_the_replay(driver: Driver, device: CudaDevice) -> None:
    results = iter("abcdef")

    def call() -> str:
        driver.launch("one", us=10.0)
        driver.launch("two", us=10.0)
        return next(results)

    replay = device.capture(call)
    assert driver.ran == ["one on side 1", "two on side 1"] * 3, "the captured call itself runs nothing"
    assert driver.current is driver.default
    driver.ran.clear()
    launches = driver.launches
    assert [replay(), replay()] == ["d", "d"]
    assert driver.ran == ["one on default", "two on default"] * 2
    assert driver.launches == launches + 2, "a graph is started at once, however many kernels it has"


@pytest.mark.parametrize("wrong", ["synchronize", "event", "query"])
def test_what_waits_cannot_be_captured_and_the_error_says_what_it_did(
    driver: Driver, device: CudaDevice, wrong: str
) -> None:
    def call() -> None:
        driver.launch()
        event = driver.Event()
        event.record(driver.current_stream(0))
        {"synchronize": lambda: driver.synchronize(0), "event": event.synchronize, "query": event.query}[wrong]()

    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        device.capture(call)
    assert driver.current is driver.default, "torch leaves the captured stream as the current one"
    assert device.capture(driver.launch)() is None, "the next one can be captured"


def test_what_a_call_raises_is_not_hidden_by_the_end_of_the_capture(driver: Driver, device: CudaDevice) -> None:
    calls = iter(range(10))

    def call() -> None:
        if next(calls) == 3:
            driver.invalid = True
            raise ValueError("no tile of this size")

    with pytest.raises(ValueError, match="no tile of this size") as caught:
        device.capture(call)
    assert caught.value.__suppress_context__


def test_graphs_share_memory_while_there_are_any_and_captures_one_stream(driver: Driver, device: CudaDevice) -> None:
    one, other = device.capture(driver.launch), device.capture(driver.launch)
    assert len(driver.streams) == 1
    assert driver.pools[0] is driver.pools[1]
    del one
    third = device.capture(driver.launch)
    assert driver.pools[2] is driver.pools[0], "the second still holds it"
    del other, third
    gc.collect()
    fourth = device.capture(driver.launch)
    assert driver.pools[3] is not driver.pools[0], "a pool that no graph holds is gone"
    fourth()


def test_a_failed_capture_leaves_its_pool_to_nobody(driver: Driver, device: CudaDevice) -> None:
    good = device.capture(driver.launch)
    with pytest.raises(RuntimeError):
        device.capture(lambda: driver.synchronize(0))
    device.capture(driver.launch)
    assert driver.pools[0] is driver.pools[1] is not driver.pools[2]
    good()


def test_a_graph_keeps_what_its_call_reads(driver: Driver, device: CudaDevice) -> None:
    class Weights:
        gone = False

        def __del__(self) -> None:
            Weights.gone = True

    def captured() -> Callable[[], Any]:
        weights = Weights()

        def call() -> Weights:
            driver.launch()
            return weights

        return device.capture(lambda: call() and None)

    replay = captured()
    gc.collect()
    assert not Weights.gone, "a replay would read memory that belongs to somebody else"
    del replay
    gc.collect()
    assert Weights.gone


# memory


def test_memory_that_the_allocator_can_give_again_is_free(driver: Driver, device: CudaDevice) -> None:
    assert device.free_memory() == 1000 + 30 - 10


def test_an_allocator_without_figures_leaves_what_the_driver_tells(
    driver: Driver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int) -> int:
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")

    monkeypatch.setattr(driver, "memory_reserved", refuse)
    assert device.free_memory() == 1000


def test_a_flush_is_more_than_the_l2(device: CudaDevice) -> None:
    assert device.cache_bytes() == 50 << 20
    assert device.flush().bytes == 100 << 20


# errors that stay


def test_an_illegal_access_is_found_out_late_and_stays(driver: Driver, device: CudaDevice) -> None:
    driver.launch("bad", us=1000.0, illegal=True)
    driver.launch("good")  # the device is not there yet: nothing is known
    for _ in range(2):
        with pytest.raises(
            DeviceLostError, match=r"^cuda:0 is of no use.*illegal memory access.*start it again"
        ) as caught:
            device.synchronize()
        assert isinstance(caught.value, TunebookError), "one line to the user"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        driver.launch("innocent")
    with pytest.raises(DeviceLostError):
        device.seconds([driver.launch])
    with pytest.raises(DeviceLostError):
        device.capture(driver.launch)


def test_another_error_is_given_as_it_is_and_the_device_is_of_use(
    driver: Driver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "synchronize", refuse)
        with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
            device.synchronize()
    device.synchronize()


def test_a_block_on_a_lost_device_raises_what_was_wrong_there(driver: Driver, device: CudaDevice) -> None:
    with pytest.raises(ValueError, match="first"), device.stream():  # noqa: PT012 - the block is the point
        driver.launch("bad", us=0.0, illegal=True)
        raise ValueError("first")
    assert driver.current is driver.default


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (error_of(700), True),
        (error_of(900), False),
        (DeviceLostError("cuda:0 is of no use to this process any more"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: tensor memory not completely freed"), True),
        (error_of(721), True),
        (error_of(226), True),
        (error_of(810), True),
        (RuntimeError("cutlass: cudaErrorIllegalAddress"), True),
        (RuntimeError("cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED"), True),
        (RuntimeError("cudaErrorInvalidConfiguration"), False),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), False),
        (RuntimeError("CUDA error: invalid configuration argument"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (ValueError("misaligned address"), False),
    ],
    ids=str,
)
def test_errors_that_stay_are_known_by_code_or_by_words(error: Exception, known: bool) -> None:
    assert (sticky(error) is not None) == known


def test_a_tactic_is_rejected_with_the_words_for_a_lost_device(driver: Driver, device: CudaDevice) -> None:
    driver.launch("bad", illegal=True)
    with pytest.raises(DeviceLostError) as caught:
        device.synchronize()
    assert "illegal memory access" in failure(caught.value, "M=16").detail


# no device


@pytest.mark.parametrize(
    "error", [AssertionError("Torch not compiled with CUDA enabled"), RuntimeError("No CUDA GPUs are available\nmore")]
)
def test_a_device_that_is_not_there_is_one_line(
    error: Exception, driver: Driver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int) -> None:
        raise error

    monkeypatch.setattr(driver, "get_device_properties", refuse)
    with pytest.raises(UsageError, match=r"^cuda:0 cannot be used here: (Torch not|No CUDA GPUs)") as caught:
        device.environment()
    assert "\n" not in str(caught.value)
