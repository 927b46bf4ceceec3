"""What a process publishes: checked that it reads back from a file as it is, and held against what a cache has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from tunebook.records import Plan, Record, Verdict
from tunebook.store._merge import better_supported, chosen_verdict
from tunebook.store._text import one_line

_verdict = msgspec.json.Decoder(Verdict)
_plan = msgspec.json.Decoder(Plan)
_encoder = msgspec.json.Encoder()
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Verdicts by problem key and plans by fingerprint; `unfit` is a line about each result that cannot be kept."""

    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    unfit: tuple[str, ...] = ()

    def over(self, verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan]) -> Results:
        """These as the later results over what is given."""
        chosen = {
            key: chosen_verdict(verdicts[key], verdict) if key in verdicts else verdict
            for key, verdict in self.verdicts.items()
        }
        return Results(verdicts={**verdicts, **chosen}, plans={**plans, **self.plans}, unfit=self.unfit)

    def are_in(self, verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan]) -> bool:
        """Whether each of these is there, or a better supported verdict in its place. Reads those entries alone."""
        for key, verdict in self.verdicts.items():
            there = verdicts.get(key)
            if there is None or (there != verdict and not better_supported(there, verdict)):
                return False
        return all(plans.get(key) == plan for key, plan in self.plans.items())

    def outdone(self, verdicts: Mapping[str, Verdict]) -> int:
        """How many of these have another verdict in their place."""
        return sum(verdicts.get(key) != verdict for key, verdict in self.verdicts.items())


def readable(verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan]) -> Results:
    """What reads back from a file under its key, in the form in which it will; and what is wrong with the rest.

    One entry that cannot be read back must not spoil the file for everybody else.
    """
    unfit: list[str] = []
    return Results(
        verdicts=_fit("verdict", verdicts, _verdict, lambda verdict: verdict.problem, unfit),
        plans=_fit("plan", plans, _plan, lambda plan: plan.fingerprint, unfit),
        unfit=tuple(unfit),
    )


def _fit(
    what: str,
    results: Mapping[str, _R],
    decoder: msgspec.json.Decoder[_R],
    key_of: Callable[[_R], str],
    unfit: list[str],
) -> dict[str, _R]:
    fit: dict[str, _R] = {}
    for key, result in results.items():
        try:
            read = decoder.decode(_encoder.encode(result))
            if key_of(read) != key:
                raise ValueError(f"it is about {key_of(read)}")
            fit[key] = read
        except ValueError as error:
            unfit.append(f"{what} {one_line(key)}: {one_line(error)}")
    return fit
