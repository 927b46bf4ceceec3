"""Resuming a model's tuning: what it was asked for stands in its run file, and arguments that contradict that are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.engine import models
from tunebook.engine._attach import ATTACHABLE
from tunebook.engine._mix import parse_mix
from tunebook.engine._phases import PhaseRequest, merged
from tunebook.engine._terms import Terms
from tunebook.errors import UsageError
from tunebook.plan import MemoryLimit
from tunebook.records import Header, Settings
from tunebook.store import Policy, ResolvedPolicy
from tunebook.tuner import Isolate, Selection

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner


def settings_of(
    runner: ModelRunner,
    budget_s: float | None,
    wanted: Sequence[PhaseRequest],
    terms: Terms,
    files: Iterable[str | Path],
) -> Settings:
    """What a tuning of `runner` is asked for; the session adds what it knows itself."""
    loaded = runner.loaded
    built_in = loaded.name in models.names()
    return Settings(
        source=loaded.name if built_in else str(loaded.path or ""),
        files=tuple(str(Path(file).expanduser().resolve()) for file in files),
        budget_s=budget_s,
        attached=() if runner.ops == ATTACHABLE else runner.ops,
        wanted=tuple(map(str, wanted)),
        memory_limit="" if terms.limit is None else str(terms.limit),
        mix=terms.mix,
        mix_given=terms.mix_given,
        batch_invariant=terms.batch_invariant,
    )


def terms_again(settings: Settings) -> Terms:
    """The terms of a plan as they were asked for. Raises UsageError for a limit that is none."""
    return Terms(
        limit=MemoryLimit.parse(settings.memory_limit, "memory limit") if settings.memory_limit else None,
        mix=settings.mix,
        mix_given=settings.mix_given,
        batch_invariant=settings.batch_invariant,
    )


def wanted_again(settings: Settings) -> tuple[PhaseRequest, ...]:
    """The phases as they were asked for."""
    return merged((), settings.wanted)


def refuse_other(path: str | Path, header: Header, **given: Any) -> None:
    """Raise UsageError for an argument of a tuning (by its name) that is given and is not as it was when the run began.

    None, False and what is empty are not given.
    """
    settings = header.settings
    asked = {
        **{name: getattr(settings, name) for name in settings.__struct_fields__},
        "policy": header.policy,
        "note": header.note,
        "selection": Selection(settings.ops, settings.skip_ops, settings.runners),
    }
    for name, value in given.items():
        if value is None or value is False or value in ("", ()):
            continue
        now, then = _plain(name, value), asked[name]
        if now != then:
            raise UsageError(
                f"{name}={_shown(now)} contradicts the run {path}, which was begun with {_shown(then)}; leave it out"
            )


def _plain(name: str, value: Any) -> Any:
    """An argument as the settings have it."""
    if name == "cache":
        return str(Path(value).expanduser().absolute())
    if name == "wanted":
        return tuple(map(str, value))
    if name == "memory_limit":
        return str(MemoryLimit.parse(value, "memory limit"))
    if name == "mix":
        return parse_mix(value, None)
    if isinstance(value, ResolvedPolicy):
        value = value.policy
    return value.value if isinstance(value, Policy | Isolate) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)
