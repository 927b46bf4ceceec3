"""What a device promises: a clock in seconds, waiting that waits, facts that stay, memory in bytes, and graphs or a reason."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

from tunebook.devices import Device
from tunebook.errors import UsageError
from tunebook.records import Environment
from tunebook.testing._failure import broken, no_exception

#: So many readings of the clock follow each other.
READINGS = 1000
#: A pause of so many seconds has to take as long by the device's clock as by Python's, within this factor.
PAUSE_S, FACTOR = 0.02, 1.5
_CLOCK = "let clock() return seconds, as a float, of a clock that never goes back"


def check_device(device: Device) -> None:
    """Check what a device promises. Raises ContractError for what is broken; takes a tenth of a second or so.

    The clock goes forward, over whatever else is asked of the device, and counts seconds; `synchronize` and `stream` let work
    through and no error vanish; the hard facts are texts and do not change; memory and caches are counted in bytes; the flush
    can be called; calls can be captured and are run again by a replay, or `no_capture` says why not and `capture` refuses.
    """
    thing = f"device {getattr(device, 'name', type(device).__name__)!s}"
    _check_name(thing, device)
    _check_clock(thing, device)
    for what, part in (
        ("work in its stream", _check_work),
        ("environment", _check_environment),
        ("its memory and its flush", _check_memory),
        ("a capture", _check_capture),
    ):
        before = device.clock()
        part(thing, device)
        if device.clock() < before:
            broken(thing, f"its clock goes back over {what}", _CLOCK)


def _check_name(thing: str, device: Device) -> None:
    import torch

    with no_exception(thing, "its name is none of torch's:", "let name be what torch calls it, such as cuda:0"):
        torch.device(device.name)


def _check_clock(thing: str, device: Device) -> None:
    remedy = _CLOCK
    with no_exception(thing, "its clock raises", remedy):
        readings: list[Any] = [device.clock() for _ in range(READINGS)]
    if not all(isinstance(reading, float) and math.isfinite(reading) for reading in readings):
        broken(thing, f"its clock returns {readings[0]!r}", remedy)
    if any(after < before for before, after in itertools.pairwise(readings)):
        broken(thing, "its clock goes back", remedy)
    outer = time.perf_counter()
    start = device.clock()
    inner = time.perf_counter()
    time.sleep(PAUSE_S)
    least = time.perf_counter() - inner
    told = device.clock() - start
    most = time.perf_counter() - outer
    if not least / FACTOR <= told <= most * FACTOR:
        broken(thing, f"its clock counts {told:.3g} for a pause of {least:.3g} s", remedy)


class _Error(Exception):
    pass


def _fails() -> None:
    raise _Error("on purpose")


def _check_work(thing: str, device: Device) -> None:
    import torch

    with no_exception(thing, "synchronize raises", "it returns when all that was started has ended"):
        for _ in range(2):
            device.synchronize()
    remedy = "work in the block runs on a stream that the current one waits for"
    with no_exception(thing, "work in its stream raises", remedy):
        before = torch.ones(1024, device=device.name)
        with device.stream():
            inside = before + 1
        after = inside.sum()
        device.synchronize()
    if float(after) != 2048:
        broken(thing, f"work after its stream sees {float(after)}, not the 2048 that was computed in it", remedy)
    try:
        with device.stream():
            raise _Error
    except _Error:
        return
    broken(thing, "an error in its stream's block vanishes", "let the context manager return nothing true")


def _check_environment(thing: str, device: Device) -> None:
    with no_exception(thing, "environment raises", "it says what timings depend on"):
        one = device.environment()
        torch_work = [device.flush()() for _ in range(2)]
        other = device.environment()
    del torch_work
    if not isinstance(one, Environment):
        broken(thing, f"environment returns a {type(one).__name__}", "return a tunebook.records.Environment")
    for kind, facts in (("hard", one.hard), ("soft", one.soft)):
        for name, value in facts.items():
            if not isinstance(name, str) or not isinstance(value, str):
                broken(thing, f"its {kind} fact {name!r} is {value!r}", "write every fact as text")
    if one.digest != other.digest:
        broken(
            thing,
            f"its hard facts change from one call to the next ({'; '.join(one.differences(other))})",
            "load, clocks and temperatures are soft: a change of a hard fact is another book",
        )


def _check_memory(thing: str, device: Device) -> None:
    for what, least, call in (("free_memory", 1, device.free_memory), ("cache_bytes", 0, device.cache_bytes)):
        with no_exception(thing, f"{what} raises", "it returns bytes"):
            found: object = call()
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= 1 << 62:
            broken(thing, f"{what} is {found!r}", f"return bytes as an int, at least {least}")
    with no_exception(thing, "its flush raises", "let flush() give a function that empties caches, with bytes"):
        flush = device.flush()
        flush()
        read: object = flush.bytes
    if not isinstance(read, int) or read < 0:
        broken(thing, f"the bytes of its flush are {read!r}", "say how many it reads, 0 where it reads none")


def _check_capture(thing: str, device: Device) -> None:
    import torch

    reason: object = device.no_capture()
    work = torch.ones(8, device=device.name)
    if reason is None:
        with no_exception(thing, "capture raises", "let no_capture() say why calls cannot be captured"):
            replay = device.capture(lambda: work + 1)
            result = replay()
            device.synchronize()
        if not torch.equal(result, work + 1):
            broken(thing, "a captured call gives another result", "let the replay return the call's own result")
        work.add_(1)
        result = replay()
        device.synchronize()
        if not torch.equal(result, work + 1):
            broken(thing, "a replay does not run the call again", "let it compute from what the input is by then")
        try:
            device.capture(_fails)()
        except _Error:
            return
        except Exception as error:  # noqa: BLE001 - named, whatever it is
            said = f"{type(error).__name__}: {error}"
            broken(thing, f"of a call that raises, capture raises {said}", "raise what the call raised")
        broken(thing, "an error of a call that is captured vanishes", "raise what the call raised")
    if not isinstance(reason, str) or not reason:
        broken(thing, f"no_capture is {reason!r}", "return None, or the reason as text")
    try:
        device.capture(lambda: work + 1)
    except UsageError:
        return
    except Exception as error:  # noqa: BLE001 - named, whatever it is
        broken(thing, f"capture raises {type(error).__name__}: {error}", "raise UsageError where there are no graphs")
    broken(thing, f"it captures, and no_capture says {reason!r}", "return None there")
