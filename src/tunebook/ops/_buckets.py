"""Buckets: which sizes of a dynamic dimension share one verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from tunebook.errors import OpError
from tunebook.records import Dim

#: A custom rounding function is followed size by size; beyond this one, buckets are given by their own `max`.
_LARGEST_SCAN = 1 << 16


@dataclass(frozen=True)
class Bucket:
    """A rounding rule: `round(size)` is the size that stands for every size of its bucket.

    `rule` is part of the problem's key. Sizes above `max` (or below 1) have no bucket: they run the default. Dimensions
    with the same `name` must agree in size and are one dimension of the key.
    """

    rule: str
    round: Callable[[int], int]
    rounding: str = "up"
    max: int | None = None
    name: str | None = None

    def of(self, size: int) -> int | None:
        """The bucket of `size`, or None where there is none."""
        if size < 1 or (self.max is not None and size > self.max):
            return None
        bucket = self.round(size)
        if self.max is not None and bucket > self.max:
            bucket = self.max
        wrong = {"up": bucket < size, "down": not 0 < bucket <= size, "exact": bucket != size}
        if wrong[self.rounding]:
            raise OpError(f"bucket rule {self.rule!r} rounds {size} {self.rounding} to {bucket}")
        return bucket

    def dim(self, name: str, size: int) -> Dim | None:
        """`size` as a dimension of a problem's key, or None where it has no bucket."""
        bucket = self.of(size)
        return None if bucket is None else Dim(name=name, size=bucket, rounding=self.rounding, rule=self.rule)

    def up_to(self, largest: int) -> tuple[int, ...]:
        """Every bucket that sizes from 1 to `largest` fall into, ascending."""
        return tuple(dict.fromkeys(self._walk(largest)))

    def edges(self, bucket: int, largest: int) -> tuple[int, int]:
        """The least and the greatest size that fall into `bucket`; a bucket rounded down ends at `largest`."""
        return _edges(self, bucket, max(bucket, largest))

    def _walk(self, largest: int) -> Iterator[int]:
        size, limit = 1, min(largest, self.max or largest)
        if self.rounding != "up":
            limit = min(limit, _LARGEST_SCAN)
        while size <= limit:
            bucket = self.of(size)
            if bucket is None:
                return
            yield bucket
            size = bucket + 1 if self.rounding == "up" else size + 1


@lru_cache(maxsize=4096)
def _edges(bucket_rule: Bucket, bucket: int, largest: int) -> tuple[int, int]:
    low = high = bucket
    if bucket_rule.rounding == "up":
        while low > 1 and bucket_rule.of(low - 1) == bucket:
            low -= 1
    elif bucket_rule.rounding == "down":
        while high < min(largest, _LARGEST_SCAN) and bucket_rule.of(high + 1) == bucket:
            high += 1
    return low, high


def pow2(max: int | None = None, *, name: str | None = None) -> Bucket:
    """Powers of two, rounded up: 1, 2, 4, 8, …"""
    return Bucket(rule="pow2", round=lambda size: 1 << (size - 1).bit_length(), max=max, name=name)


def multiple(of: int, max: int | None = None, *, name: str | None = None) -> Bucket:
    """Multiples of `of`, rounded up."""
    if of < 1:
        raise OpError(f"multiple({of}): a bucket's step is at least 1")
    return Bucket(rule=f"multiple({of})", round=lambda size: -(-size // of) * of, max=max, name=name)


def exact(max: int | None = None, *, name: str | None = None) -> Bucket:
    """Every size is its own bucket."""
    return Bucket(rule="exact", round=lambda size: size, rounding="exact", max=max, name=name)


def buckets(
    function: Callable[[int], int], rule: str, *, rounding: str = "up", max: int | None = None, name: str | None = None
) -> Bucket:
    """A rounding function of your own. `rule` names it in the key: change the name when the function changes."""
    if rounding not in ("up", "down", "exact"):
        raise OpError(f"rounding {rounding!r} of rule {rule!r} is none of up, down, exact")
    return Bucket(rule=rule, round=function, rounding=rounding, max=max, name=name)
