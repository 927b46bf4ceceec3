"""What a tuning holds beside the model, under one bound: prepared weights, those of a race among them, and live inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from tunebook.devices import give_back
from tunebook.dispatch import Binding

#: All that a tuning holds beside the model, as a share of the weights that it tunes.
HELD_SHARE = 1.1
#: But in a small model at least so many bytes.
HELD_LEAST = 256 << 20


def held_bytes(limit: int, weights: int) -> int:
    """How many bytes a tuning of layers with so many bytes of weights may hold beside them."""
    return min(limit, max(HELD_LEAST, int(HELD_SHARE * weights)))


class Held:
    """At most `limit` bytes beside the model: prepared weights, and live inputs, of which `inputs` bytes are there all along.

    What is held is used again by other buckets of the same layers, until something else needs the room. What the layers held
    before the tuning belongs to service and is neither counted nor released.
    """

    def __init__(self, limit: int, inputs: int = 0) -> None:
        self.limit = limit
        self._inputs = inputs
        self._layers: dict[int, Binding] = {}
        self._before: dict[int, frozenset[str]] = {}
        self._used: dict[tuple[int, str], int] = {}
        self._turns = itertools.count()
        self._pins: dict[str, _Pin] = {}

    def watch(self, layers: Sequence[Binding]) -> None:
        """These layers are tuned from now on."""
        for layer in layers:
            if id(layer) not in self._layers:
                self._layers[id(layer)] = layer
                self._before[id(layer)] = frozenset(layer.prepared.layouts)

    def pin(
        self,
        key: str,
        layers: Sequence[Binding],
        layouts: Collection[str],
        inputs: int,
        let_go: Callable[[], None],
    ) -> None:
        """The race of problem `key` may go on: it holds these layouts, and inputs of so many bytes, until `let_go()`."""
        self._pins.pop(key, None)
        self._pins[key] = _Pin({(id(layer), layout) for layer in layers for layout in layouts}, inputs, let_go)

    def unpin(self, key: str) -> None:
        self._pins.pop(key, None)

    def let_go(self) -> None:
        """End the hold of every open race."""
        while self._pins:
            _, pin = self._pins.popitem()
            pin.let_go()

    @property
    def bytes(self) -> int:
        inputs = self._inputs + sum(pin.inputs for pin in self._pins.values())
        return inputs + sum(self._layers[place].prepared.bytes_of(layout) for place, layout in self._releasable())

    def room(self, inputs: int) -> int:
        """The bytes that one problem may fill with prepared weights, with inputs of its own of so many bytes."""
        return max(0, self.limit - self._inputs - inputs)

    def lacking(self, layers: Sequence[Binding], sizes: Mapping[str, int]) -> int:
        """The bytes of layouts, which take `sizes` on a layer, on those of these layers that do not have them."""
        return sum(size for layer in layers for layout, size in sizes.items() if not layer.prepared.bytes_of(layout))

    def taken(self, layers: Sequence[Binding], sizes: Mapping[str, int]) -> int:
        """The bytes of layouts, which take `sizes` on a layer, on all these layers; what belongs to service is not counted."""
        return sum(
            size
            for layer in layers
            for layout, size in sizes.items()
            if layout not in self._before.get(id(layer), frozenset())
        )

    def make_room(self, needed: int, layers: Sequence[Binding] = (), layouts: Collection[str] = ()) -> None:
        """Release until so many bytes more fit the limit, or nothing is left to release but these layouts of these layers.

        First goes what no open race holds, longest unused first, then the open races, the latest first.
        """
        kept = {(id(layer), layout) for layer in layers for layout in layouts}
        self._used.update(dict.fromkeys(kept, next(self._turns)))
        released = self._release(needed, kept)
        while self.bytes + needed > self.limit and self._pins:
            _, pin = self._pins.popitem()
            pin.let_go()
            self._release(needed, kept)
            released = True
        if released:
            give_back()

    def _release(self, needed: int, kept: Collection[tuple[int, str]]) -> bool:
        """Release what no open race holds as far as needed; whether there was anything."""
        excess = self.bytes + needed - self.limit
        if excess <= 0:
            return False
        pinned = {held for pin in self._pins.values() for held in pin.held}
        free = [held for held in self._releasable() if held not in pinned and held not in kept]
        gone: dict[int, set[str]] = {}
        for place, layout in sorted(free, key=lambda held: self._used.get(held, -1)):
            if excess <= 0:
                break
            excess -= self._layers[place].prepared.bytes_of(layout)
            gone.setdefault(place, set()).add(layout)
        for place, layouts in gone.items():
            prepared = self._layers[place].prepared
            prepared.keep_only(set(prepared.layouts) - layouts)
        return bool(gone)

    def _releasable(self) -> Iterator[tuple[int, str]]:
        """Each layout, with its layer, that the tuning prepared."""
        for place, layer in self._layers.items():
            for layout in layer.prepared.layouts:
                if layout not in self._before[place]:
                    yield place, layout


class _Pin:
    """What an open race holds."""

    def __init__(self, held: set[tuple[int, str]], inputs: int, let_go: Callable[[], None]) -> None:
        self.held, self.inputs, self.let_go = held, inputs, let_go
