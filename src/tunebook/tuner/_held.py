"""Prepared weights that a tuning holds on the layers that it tunes: kept while they fit, released when nobody needs them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tunebook.dispatch import Binding

#: All prepared weights that a tuning holds at once, as a share of the weights that it tunes.
HELD_SHARE = 1.1
#: But in a small model at least so many bytes.
HELD_LEAST = 256 << 20


def held_bytes(limit: int, weights: int) -> int:
    """How many bytes of prepared weights a tuning of layers with so many bytes of weights may hold."""
    return min(limit, max(HELD_LEAST, int(HELD_SHARE * weights)))


class Held:
    """At most about `limit` bytes of prepared weights, so that a space with many layouts does not fill the memory.

    What is held is used again by other buckets of the same layers. What the layers held before the tuning belongs to
    service and is neither counted nor released.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._layers: dict[int, Binding] = {}
        self._before: dict[int, frozenset[str]] = {}
        self._pins: dict[str, tuple[frozenset[int], frozenset[str]]] = {}
        self._inputs: dict[str, int] = {}

    def watch(self, layers: Sequence[Binding]) -> None:
        """These layers are tuned from now on."""
        for layer in layers:
            if id(layer) not in self._layers:
                self._layers[id(layer)] = layer
                self._before[id(layer)] = frozenset(layer.prepared.layouts)

    def pin(self, key: str, layers: Sequence[Binding], layouts: Collection[str], inputs: int) -> None:
        """The race of problem `key` may go on: it holds these layouts, and inputs of so many bytes."""
        self._pins[key] = (frozenset(id(layer) for layer in layers), frozenset(layouts))
        self._inputs[key] = inputs

    def unpin(self, key: str) -> None:
        self._pins.pop(key, None)
        self._inputs.pop(key, None)

    @property
    def bytes(self) -> int:
        return sum(self._inputs.values()) + sum(
            layer.prepared.bytes - sum(map(layer.prepared.bytes_of, self._before[place]))
            for place, layer in self._layers.items()
        )

    @property
    def over(self) -> bool:
        return self.bytes > self.limit

    def trim(self, layers: Sequence[Binding] = (), needed: Collection[str] = ()) -> None:
        """Once more is held than the limit, release what no open race holds, but for the layouts `needed` on `layers`."""
        if not self.over:
            return
        here = {id(layer) for layer in layers}
        for place, layer in self._layers.items():
            pinned = {layout for places, layouts in self._pins.values() if place in places for layout in layouts}
            layer.prepared.keep_only({*self._before[place], *pinned, *(needed if place in here else ())})
