"""Which tactics of a line-up fit the memory together, on so many layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from tunebook.dispatch import Binding
from tunebook.tuner._held import Held
from tunebook.tuner._lineup import Lineup


@dataclass
class Fit:
    """Tactics that fit together: their names, their layouts with the bytes of each on a layer, and what one call takes."""

    names: set[str] = dataclass_field(default_factory=set)
    sizes: dict[str, int] = dataclass_field(default_factory=dict)
    workspace: int = 0


def that_fit(held: Held, lineup: Lineup, names: Iterable[str], layers: Sequence[Binding], room: int) -> Fit:
    """Of the admitted `names`, those that fit `room` bytes together; the first ones have it first."""
    found, taken = Fit(), 0
    for name in names:
        candidate = lineup.admitted[name]
        more = 0 if candidate.layout in found.sizes else held.taken(layers, {candidate.layout: candidate.bytes})
        workspace = max(found.workspace, lineup.workspaces.get(name, 0))
        if taken + more + workspace <= room:
            taken += more
            found.names.add(name)
            found.sizes[candidate.layout] = candidate.bytes
            found.workspace = workspace
    return found
