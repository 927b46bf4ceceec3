"""The ranks of FlashInfer's process group: who tunes what, and which tactic all of them serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from tunebook.devices import Device
from tunebook.records import DEFAULT, Environment, Problem, Verdict
from tunebook.tuner import ContradictionError, Group, Turns, Watched, device_identity, listed

#: Ops whose calls communicate: no rank can time them alone, and FlashInfer times them in step with its own clock.
COMMUNICATING = frozenset({"flashinfer::pcie_ipc_all_reduce"})


class Hello(msgspec.Struct, frozen=True):
    """What a rank says of itself at the start of a block."""

    device: str
    environment: Environment
    options: dict[str, str]


class Met(msgspec.Struct, frozen=True):
    """A problem as one rank met it.

    `bare` is its key without what its runners add to it, such as the number of the rank. `known` is what that rank holds,
    `sound` where it needs no new race; `open`: it may be raced there.
    """

    key: str
    bare: str
    weight: float
    open: bool
    known: Verdict | None
    sound: bool


@dataclass(frozen=True)
class Share:
    """One problem of all ranks: its key on each rank that met it, by place, and who is to tune it.

    `known` is what one of them holds; `sound` where it needs no new race.
    """

    keys: dict[int, str]
    weight: float
    known: Verdict | None
    sound: bool
    tuned_by: int | None


def bare_key(problem: Problem) -> str:
    return msgspec.structs.replace(problem, attrs=tuple(pair for pair in problem.attrs if pair[0] != "extras")).key


def matched(every: Sequence[Sequence[Met]]) -> list[dict[int, Met]]:
    """Which problems of the ranks are the same, each by the place of the rank; the same answer on every rank.

    Equal keys are. Where runners add to their key what differs from rank to rank, such as its number, the first of one rank
    is the first of another: ranks of one model meet their problems in the same order.
    """
    alike: dict[str, list[list[Met]]] = {}
    for place, mets in enumerate(every):
        for met in mets:
            alike.setdefault(met.bare, [[] for _ in every])[place].append(met)
    found: list[dict[int, Met]] = []
    for lists in alike.values():
        there = [place for place, mets in enumerate(lists) if mets]
        common = set[str].intersection(*({met.key for met in lists[place]} for place in there))
        by_key = {place: {met.key: met for met in lists[place]} for place in there}
        found += [{place: by_key[place][key] for place in there} for key in by_key[there[0]] if key in common]
        rest = [[met for met in mets if met.key not in common] for mets in lists]
        turns = range(max(map(len, rest)))
        found += [{place: mets[turn] for place, mets in enumerate(rest) if turn < len(mets)} for turn in turns]
    return found


def shares(every: Sequence[Sequence[Met]], devices: Sequence[str]) -> list[Share]:
    """Each problem to one rank that met it, the costliest first, so that the devices end together.

    What one rank knows, and may serve, is not raced; of two such verdicts that of the lower rank counts.
    """
    found: list[Share] = []
    busy = dict.fromkeys(devices, 0.0)
    load = [0.0] * len(every)
    groups = matched(every)
    weights = [max(met.weight for met in group.values()) for group in groups]
    for number in sorted(range(len(groups)), key=lambda number: (-weights[number], number)):
        group, weight = groups[number], weights[number]
        keys = {place: met.key for place, met in group.items()}
        sound = next((met.known for met in group.values() if met.known is not None and met.sound), None)
        known = sound or next((met.known for met in group.values() if met.known is not None), None)
        able = [place for place, met in group.items() if met.open] if sound is None else []
        place = min(able, key=lambda place: (busy[devices[place]], load[place], place), default=None)
        if place is not None:
            busy[devices[place]] += weight
            load[place] += weight
        found.append(Share(keys, weight, known, sound is not None, place))
    return found


def part(found: Sequence[Share], devices: Sequence[str], me: int) -> float:
    """What the rank at place `me` gets of its device's time: by the weight of what it is to tune."""
    here = [one for one in found if one.tuned_by is not None and devices[one.tuned_by] == devices[me]]
    mine = sum(one.weight for one in here if one.tuned_by == me)
    return mine / sum(one.weight for one in here) if mine else 0.0


class Team:
    """This rank among those of FlashInfer's group, for one block. All call the same methods in the same order.

    Raises RankError from any of them as soon as a rank is lost, or failed.
    """

    def __init__(self, group: Any, device: Device, environment: Environment, options: Mapping[str, object]) -> None:
        """Join the others. Raises UsageError, on every rank, where they were started with what contradicts each other."""
        # FlashInfer compiles in the block, for minutes: collectives there are the engine's own
        self.group = Group(group, limit_collectives=False)
        self._watched = Watched(device, self.group.line)
        try:
            mine = Hello(device_identity(device), environment, {name: str(value) for name, value in options.items()})
            hellos = self.group.gather("hello", mine, Hello)
            wrong = [text for place in range(1, self.group.size) for text in self._contradictions(hellos, place)]
            if wrong:
                raise ContradictionError(f"the ranks cannot tune together: {listed(wrong)}; start all with the same")
            self.group.enter("in its dummy run")
        except BaseException as error:
            self.broken(error)
            raise
        self._devices = [hello.device for hello in hellos]
        self._shares: list[Share] = []

    def _contradictions(self, hellos: Sequence[Hello], place: int) -> list[str]:
        mine, first = hellos[place], hellos[0]
        name, other = self.group.names[place], self.group.names[0]
        found = [
            f"{name} has {option}={mine.options.get(option, '-')}, {other} {option}={first.options.get(option, '-')}"
            for option in sorted({*mine.options, *first.options})
            if mine.options.get(option) != first.options.get(option)
        ]
        differences = mine.environment.differences(first.environment)
        return found + [f"{name} runs in another environment than {other}: {one}" for one in differences]

    @property
    def me(self) -> int:
        return self.group.me

    @property
    def device(self) -> Device:
        """What measures in this rank's turns."""
        return cast("Device", self._watched)

    def share(self, mine: Sequence[Met]) -> list[Share]:
        """All problems of the ranks, in the same order on each."""
        self.group.enter("exchanging problems")
        self._shares = shares(self.group.gather("problems", list(mine), list[Met]), self._devices)
        return self._shares

    def turns(self) -> Turns:
        """The queue of the ranks on this rank's device."""
        alone = self._devices.count(self._devices[self.me]) == 1
        name = str(sorted(set(self._devices)).index(self._devices[self.me]))
        return Turns(self.group, name, alone, self._watched, lambda: None)

    def budget(self, seconds: float) -> float:
        """This rank's part of the seconds: ranks on one device share its time."""
        mine = part(self._shares, self._devices, self.me)
        return seconds * mine if mine else 0.0

    def exchange(self, mine: Mapping[int, Verdict]) -> dict[int, Verdict]:
        """What all ranks found out, by the number of the share."""
        self.group.enter("gathering results")
        found: dict[int, Verdict] = {}
        told = {str(number): verdict for number, verdict in mine.items()}  # JSON has no other keys
        for one in self.group.gather("verdicts", told, dict[int, Verdict]):
            found |= one
        return found

    def agree(self, mine: Mapping[int, Sequence[str]]) -> dict[int, str]:
        """The tactic that all ranks serve, by the number of the share: the first that each can, else the default.

        `mine` are those that this rank can serve, the best first.
        """
        self.group.enter("agreeing on tactics")
        told = {str(number): list(names) for number, names in mine.items()}
        every = self.group.gather("tactics", told, dict[int, list[str]])
        agreed: dict[int, str] = {}
        for number in mine:
            offers = [one[number] for one in every if number in one]
            agreed[number] = next((name for name in offers[0] if all(name in o for o in offers)), DEFAULT.name)
        return agreed

    def broken(self, error: BaseException) -> None:
        """This rank goes no further: tell the others why, unless it is they who failed."""
        self.group.fail(error)
        self.group.close()

    def close(self) -> None:
        self.group.close()
