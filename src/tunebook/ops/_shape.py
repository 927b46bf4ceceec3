"""What a call looks like to the tuner: its problem, its sizes, and how inputs of other sizes are made from live ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunebook.errors import OpError
from tunebook.ops._buckets import Bucket
from tunebook.records import Dim, Problem

if TYPE_CHECKING:
    import random

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64", "int64": "i64", "int32": "i32"}


def dtype_name(dtype: Any) -> str:
    """``torch.bfloat16`` as ``bf16``."""
    name = str(dtype).removeprefix("torch.")
    return _SHORT.get(name, name)


@dataclass(frozen=True)
class Description:
    """A call's static attributes, dtypes and exact dynamic sizes, before they are rounded to buckets."""

    attrs: tuple[tuple[str, str], ...]
    dtypes: tuple[str, ...]
    sizes: Mapping[str, int]


#: Describes a call from its arguments, constants included, in the order of the op's signature.
Describe = Callable[[Sequence[Any]], Description]
#: Makes arguments of other dynamic sizes from live dynamic arguments.
Resample = Callable[[Sequence[Any], Mapping[str, int], "random.Random"], tuple[Any, ...]]
#: From a tactic's output, the default's, and the dynamic arguments: the greatest relative error, or what is wrong in words.
Agree = Callable[[Any, Any, Sequence[Any]], float | str]
#: From a call's arguments, constants included, other dynamic arguments of the same problem that a tactic must get right as
#: well, whether or not the model was seen to use them: each with a label for messages.
Extremes = Callable[[Sequence[Any], "random.Random"], Iterable[tuple[str, Sequence[Any]]]]


class Shape:
    """The problems of one op. By default every tensor dimension without a bucket, and every plain value, is an attribute."""

    def __init__(
        self,
        op: str,
        names: Sequence[str],
        buckets: Mapping[str, Mapping[int, Bucket]],
        describe: Describe | None = None,
        resample: Resample | None = None,
    ) -> None:
        self.op = op
        self.names = tuple(names)
        self.buckets = {arg: dict(dims) for arg, dims in buckets.items()}
        self.by_name: dict[str, Bucket] = {}
        for arg, dims in self.buckets.items():
            if arg not in self.names:
                raise OpError(f"op {op}: buckets name {arg!r}, which is none of its arguments ({', '.join(names)})")
            for axis, bucket in dims.items():
                name = bucket.name or f"{arg}.{axis}"
                if self.by_name.setdefault(name, bucket).rule != bucket.rule:
                    raise OpError(
                        f"op {op}: dimension {name} has two rules, {self.by_name[name].rule} and {bucket.rule}"
                    )
        self._describe = describe or self._by_signature
        self._resample = resample or self._rows

    def describe(self, args: Sequence[Any]) -> Description:
        """The call's description. Raises OpError for an argument that cannot be described."""
        return self._describe(args)

    def problem(self, description: Description, policy: str = "eager") -> Problem | None:
        """The problem that a call belongs to, or None where one of its sizes has no bucket."""
        dims: list[Dim] = []
        for name, size in description.sizes.items():
            dim = self.by_name[name].dim(name, size)
            if dim is None:
                return None
            dims.append(dim)
        return Problem(op=self.op, attrs=description.attrs, dtypes=description.dtypes, dims=tuple(dims), policy=policy)

    def resample(self, dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
        """Dynamic arguments of the given sizes, their rows drawn from the live ones."""
        return self._resample(dynamic, sizes, rng)

    def _by_signature(self, args: Sequence[Any]) -> Description:
        attrs: list[tuple[str, str]] = []
        dtypes: list[str] = []
        sizes: dict[str, int] = {}
        for name, value in zip(self.names, args, strict=False):
            if _is_tensor(value):
                self._tensor(name, value, attrs, sizes)
                dtypes.append(dtype_name(value.dtype))
            elif value is None or isinstance(value, bool | int | float | str):
                attrs.append((name, str(value)))
            else:
                raise OpError(
                    f"op {self.op}: argument {name} is a {type(value).__name__}; "
                    "only tensors, numbers, strings and None make a key. Give the op a `describe` of your own"
                )
        return Description(tuple(attrs), (dtypes[0],) if len(set(dtypes)) == 1 else tuple(dtypes), sizes)

    def _tensor(self, name: str, value: Any, attrs: list[tuple[str, str]], sizes: dict[str, int]) -> None:
        dims = self.buckets.get(name, {})
        for axis, size in enumerate(value.shape):
            bucket = dims.get(axis)
            if bucket is None:
                attrs.append((f"{name}.{axis}", str(size)))
                continue
            dim = bucket.name or f"{name}.{axis}"
            if sizes.setdefault(dim, size) != size:
                raise OpError(f"op {self.op}: dimension {dim} is {sizes[dim]} in one argument and {size} in {name}")

    def _rows(self, dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
        picks: dict[str, Any] = {}
        out = []
        for name, value in zip(self.names, dynamic, strict=False):
            for axis, bucket in self.buckets.get(name, {}).items():
                dim = bucket.name or f"{name}.{axis}"
                if dim not in picks:
                    picks[dim] = draw_rows(value.shape[axis], sizes[dim], rng)
                value = value.index_select(axis, picks[dim].to(value.device))
            out.append(value)
        return tuple(out)


def draw_rows(live: int, wanted: int, rng: random.Random) -> Any:
    """Indices [wanted] int64 into `live` rows: without repetition while they last, then again from all."""
    import torch

    if live < 1:
        raise OpError("there is no live row to draw from")
    rows: list[int] = []
    while len(rows) < wanted:
        rows += rng.sample(range(live), min(live, wanted - len(rows)))
    return torch.tensor(rows, dtype=torch.int64)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "is_contiguous")
