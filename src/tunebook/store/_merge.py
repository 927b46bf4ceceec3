"""Several files of one cache as one: which of two results on one problem stays, and a mapping that looks through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from tunebook.records import Plan, Record, Verdict

_R = TypeVar("_R", bound=Record)

_SUPPORT: Final = {"unresolved": 0, "likely": 1, "proven": 2}


def better_supported(former: Verdict, now: Verdict) -> bool:
    """Whether a former verdict on a problem says more than a later one about the same runners, versions and tactics.

    A better status does; between two that are unresolved, more tactics tried, and else more rounds without a larger
    expected loss. Where what was offered differs, the later one is about what there is now, and the former says nothing.
    """
    if former.offered != now.offered:
        return False
    if former.status != now.status:
        return _SUPPORT[former.status] > _SUPPORT[now.status]
    if now.status != "unresolved":
        return False
    return now.seen < former.seen or (now.rounds < former.rounds and former.loss <= now.loss)


def chosen_verdict(former: Verdict, now: Verdict) -> Verdict:
    """Which of two verdicts on one problem stays: the better supported one, else the later one, `now`."""
    return former if better_supported(former, now) else now


def chosen_plan(former: Plan, now: Plan) -> Plan:
    """The later of two plans for one model: it was made for what was asked for last."""
    return now


class Layers(Mapping[str, _R]):
    """The entries of several files, the oldest first; of those under one key, `choose` (former, later) says which stays.

    Nothing is read before it is looked up; `len` and iteration read everything.
    """

    def __init__(self, layers: Sequence[Mapping[str, _R]], choose: Callable[[_R, _R], _R]) -> None:
        self._layers = tuple(layers)
        self._choose = choose

    def __getitem__(self, key: str) -> _R:
        found: _R | None = None
        for layer in self._layers:
            entry = layer.get(key)
            if entry is not None:
                found = entry if found is None else self._choose(found, entry)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for layer in self._layers for key in layer))

    def __len__(self) -> int:
        return len(set().union(*self._layers))

    def __repr__(self) -> str:
        return f"<entries of {len(self._layers)} files>"
