"""A layer of Transformers' key-value cache with room to grow: a new token is written behind the others.

Transformers' own layer concatenates, which copies all that is there for every token, into fresh memory.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer

from tunebook.kernels import append

#: The room that a layer gets: for so many tokens, or for this share of those that are there.
LEAST_ROOM = 64
ROOM_SHARE = 0.25


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types here
    """A `DynamicLayer` whose keys and values are views of larger tensors.

    Whatever sets `keys` or `values` (reordering, selecting or repeating of sequences, offloading, a reset) ends that; the
    next token then gets new room. What is cropped off is overwritten by the tokens that come instead, so a view that was
    taken before sees those. States that want gradients, or that are of another kind than what is held, are concatenated
    as ever.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._room: tuple[Any, Any] | None = (
            None  #: of keys and of values [B, H, C, D]; None: they are as they were set
        )
        self._count = 0  #: tokens in the room
        self._set: list[Any] = [None, None]
        super().__init__(**kwargs)

    @classmethod
    def of(cls, layer: DynamicLayer) -> RoomyLayer:
        """A layer of what `layer` holds, which is copied when the next token comes."""
        made = cls()
        made.__dict__.update((name, value) for name, value in layer.__dict__.items() if name not in ("keys", "values"))
        made._set = [layer.keys, layer.values]
        return made

    @property
    def keys(self) -> Any:
        return self._set[0] if self._room is None else self._room[0].narrow(2, 0, self._count)

    @keys.setter
    def keys(self, value: Any) -> None:
        self._set = [value, self.values]
        self._room = None

    @property
    def values(self) -> Any:
        return self._set[1] if self._room is None else self._room[1].narrow(2, 0, self._count)

    @values.setter
    def values(self, value: Any) -> None:
        self._set = [self.keys, value]
        self._room = None

    def get_seq_length(self) -> int:
        """How many tokens are held."""
        return self._count if self._room is not None else int(super().get_seq_length())

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: minus so many of them. Their room is kept."""
        if self._room is None or tokens_to_remove >= 0:
            super().crop(tokens_to_remove)
        else:
            self._count = max(self._count + tokens_to_remove, 0)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append [B, H, T, D]; returns all keys and values, as views."""
        if self.extend(key_states, value_states) is None:
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        return self.keys, self.values

    def extend(self, keys: Any, values: Any) -> tuple[Any, Any, int] | None:
        """Append [B, H, T, D] to the room, making some first where it is full: the whole room and how many tokens it holds.

        None, and nothing is done, for states that must be concatenated.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        if self._room is None or self._count + keys.shape[2] > self._room[0].shape[2]:
            if not self._continued_by(keys, values):
                return None
            self._make_room(keys.shape, keys)
        elif keys.requires_grad or values.requires_grad or keys.dtype is not self.dtype:
            return None
        assert self._room is not None
        append(keys, values, *self._room, self._count)
        self._count += keys.shape[2]
        return (*self._room, self._count)

    def _continued_by(self, keys: Any, values: Any) -> bool:
        """Whether new states are of the kind that is held, on a CPU and without gradients, so that copies may be made."""
        batch, heads, _, dim = keys.shape
        if keys.shape != values.shape or keys.dtype != values.dtype or keys.device.type != "cpu":
            return False
        for old in (self.keys, self.values):
            if old.requires_grad or keys.requires_grad or values.requires_grad:
                return False
            if old.numel() and (old.dtype, *old.shape[:2], old.shape[3]) != (keys.dtype, batch, heads, dim):
                return False
        return True

    def _make_room(self, added: Any, like: Any) -> None:
        """Larger tensors with what is held now and room for `added` and more."""
        batch, heads, tokens, dim = added
        held = self.get_seq_length()
        needed = held + tokens
        made = []
        for old in (self.keys, self.values):
            new = like.new_empty((batch, heads, needed + max(LEAST_ROOM, int(needed * ROOM_SHARE)), dim))
            if held:
                new.narrow(2, 0, held).copy_(old)
            made.append(new)
        self._room, self._count, self._set = (made[0], made[1]), held, [None, None]


def layer_with_room(cache: Any, index: int) -> RoomyLayer | None:
    """Layer `index` of a cache with room, put in the place of a plain one that holds something; None for all others."""
    if type(cache) is not DynamicCache or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if type(layer) is RoomyLayer:
        return layer
    if type(layer) is not DynamicLayer or not layer.is_initialized or cache.offloading:
        return None
    made = cache.layers[index] = RoomyLayer.of(layer)
    return made
