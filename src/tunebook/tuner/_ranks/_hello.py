"""What each rank says of itself at the start, and what of it must agree, may differ, or is made the same."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tunebook._version import __version__
from tunebook.devices import Device
from tunebook.envs import envs
from tunebook.records import Environment, Plan, Verdict
from tunebook.store import CacheContents
from tunebook.tuner._ranks._errors import ContradictionError
from tunebook.tuner._ranks._group import Group, listed

if TYPE_CHECKING:
    from tunebook.tuner._session import Session

logger = logging.getLogger("tunebook.ranks")

T = TypeVar("T")

#: Facts that a timing depends on and that the environment's digest does not hold: where they differ, a warning tells.
_TOLD = ("python", "torch", "onednn", "transformers", "driver", "cuda")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """One rank: its device (equal for ranks on the same one), environment, options by name, cache and version.

    `knows` is the digest of what its cache answers; empty where it reads none.
    """

    device: str
    environment: Environment
    options: dict[str, str]
    cache: str
    knows: str
    version: str


class Known(msgspec.Struct, frozen=True):
    """What a cache holds, as it is sent to other ranks."""

    verdicts: dict[str, Verdict]
    plans: dict[str, Plan]

    @classmethod
    def of(cls, contents: CacheContents | None) -> Known:
        return cls({}, {}) if contents is None else cls(dict(contents.verdicts), dict(contents.plans))

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


def hello(session: Session, options: Mapping[str, object], known: Known, timeout: float) -> Hello:
    """What this rank says. `options` are what the caller was asked for; what the session was is told beside."""
    asked = {
        "policy": session.policy.value,
        "continuing": session.continuing,
        "rounds": session.effort.max_rounds,
        "only_ops": session.selection.ops,
        "skip_ops": session.selection.skip_ops,
        "only_runners": session.selection.runners,
        "pins": dict(sorted((target, tactic.name) for target, tactic in session.recall.pinned.pins.tactics.items())),
        "TUNEBOOK_MEMORY_LIMIT": envs.TUNEBOOK_MEMORY_LIMIT.get(),
        "TUNEBOOK_MEMORY_LIMIT_GB": envs.TUNEBOOK_MEMORY_LIMIT_GB.get(),
        "TUNEBOOK_RANK_TIMEOUT_S": timeout,
        **options,
    }
    return Hello(
        device=device_identity(session.device),
        environment=session.environment,
        options={name: str(value) for name, value in asked.items()},
        cache=str(session.location.cache),
        knows=known.digest if session.recall.contents is not None else "",
        version=__version__,
    )


def device_identity(device: Device) -> str:
    """The same text for two processes on the same device, as far as can be told: a CPU is one device of its host."""
    try:
        host = _BOOT.read_text().strip()
    except OSError:
        host = platform.node()
    if device.name.startswith("cuda"):
        import torch

        return f"{host} {getattr(torch.cuda.get_device_properties(device.name), 'uuid', device.name)}"
    return f"{host} {device.name}"


def meet(group: Group, mine: Hello) -> tuple[Hello, ...]:
    """What all ranks say of themselves. Raises UsageError, on every rank, where they cannot tune together.

    What differs and may is logged.
    """
    hellos = group.gather("hello", mine, Hello)
    wrong = [text for place in range(1, group.size) for text in _contradictions(group, hellos, place)]
    if wrong:
        raise ContradictionError(f"the ranks cannot tune together: {listed(wrong)}; start all with the same")
    for place in range(1, group.size):
        for text in _differences(group, hellos, place):
            logger.warning("%s; the tuning goes on", text)
    return tuple(hellos)


def _contradictions(group: Group, hellos: Sequence[Hello], place: int) -> Iterator[str]:
    mine, first = hellos[place], hellos[0]
    name, other = group.names[place], group.names[0]
    if mine.version != first.version:
        yield f"{name} runs tunebook {mine.version}, {other} {first.version}"
    for option in sorted({*mine.options, *first.options}):
        one, two = mine.options.get(option, "-"), first.options.get(option, "-")
        if one != two:
            yield f"{name} has {option}={one}, {other} {option}={two}"
    for difference in mine.environment.differences(first.environment):
        yield f"{name} runs in another environment than {other}: {difference}"


def _differences(group: Group, hellos: Sequence[Hello], place: int) -> Iterator[str]:
    mine, first = hellos[place], hellos[0]
    name, other = group.names[place], group.names[0]
    for field in _TOLD:
        one, two = mine.environment.soft.get(field, "-"), first.environment.soft.get(field, "-")
        if one != two:
            yield f"{name} has {field} {one}, {other} {two}"
    if mine.cache != first.cache:
        yield f"{name} names the cache {mine.cache}; results go to that of {other}, {first.cache}"


def same_contents(
    group: Group, hellos: Sequence[Hello], known: Known, contents: CacheContents | None
) -> CacheContents | None:
    """What all ranks take for the cache from now on: where they started with different ones, all of these together.

    Of two results for one problem or plan, that of the lower rank counts.
    """
    if contents is None or len({hello.knows for hello in hellos}) == 1:
        return contents
    for place, hello in enumerate(hellos):
        if hello.knows != hellos[0].knows:
            logger.warning(
                "%s started with another cache (%s) than %s: what they hold is put together",
                group.names[place],
                hello.cache,
                group.names[0],
            )
    every = group.gather("cache", known, Known)
    return replace(
        contents,
        verdicts=_together(every, lambda one: one.verdicts),
        plans=_together(every, lambda one: one.plans),
    )


def _together(every: Sequence[Known], part: Callable[[Known], Mapping[str, T]]) -> dict[str, T]:
    merged: dict[str, T] = {}
    for one in reversed(every):
        merged.update(part(one))
    return merged
