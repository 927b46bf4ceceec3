"""Which native tactics a shape is offered: the whole space is several hundred, and these rules leave out what cannot win."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from tunebook.kernels._native import _native
from tunebook.records import Scalar

Point = dict[str, Scalar]
BLOCKS = (16, 32, 64)
#: Rows up to which vectors are offered beside AMX, whose tiles of 16 rows they leave three quarters empty.
VECTORS_MOST_ROWS = 4
#: Rows up to which a weight is read along its own rows, by dot products: each four rows read it once more.
DOT_MOST_ROWS = 16
#: Rows up to which a weight's stream from memory decides, and prefetching a fixed distance ahead is tried against none.
STREAM_MOST_ROWS = 32
STREAM_PREFETCHES = (0, 3072)
#: With more rows a block stays in the cache for several tiles; -1 fetches the next block meanwhile.
BLOCK_PREFETCHES = (3072, -1)
#: Rows of AMX's tiles: one tile, two, or a panel that K is cut in chunks for.
AMX_ROW_TILES = (16, 32, 128)
#: Rows from which every thread may take tokens of its own, though each then reads all weights.
TOKENS_LEAST_ROWS = 64
#: A linear of at most so many bytes, with at most so many rows, may be done on one thread before a second is awake.
ONE_THREAD_BYTES = 2 << 20
ONE_THREAD_ROWS = 16

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@functools.lru_cache(maxsize=1024)
def offered(op: str, rows: int, panel: str, weight: str, *, small: bool, many: bool) -> tuple[Point, ...]:
    """The tactics of "linear" or "experts" for so many rows (of a usual expert), dtypes of activations and weights.

    isa: AMX where both are bf16; beside it, up to `VECTORS_MOST_ROWS` rows, or in its place the widest vectors.
    block: 0, the model's own rows, as dot products up to `DOT_MOST_ROWS` rows or packed block by block at each call; else the
    columns of a packed block.
    row_tile: the least that holds all rows, else the largest; of vectors 4, and beyond that the largest as well.
    split: "columns"; for experts also "experts"; "tokens" with several threads (`many`) from `TOKENS_LEAST_ROWS` rows on.
    prefetch: bytes ahead of the stream of packed weights, -1 the whole next block.
    threads: 0, all that may be used; 1 as well where the weight is `small`.
    """
    threads: tuple[int, ...] = (0, 1) if small and many and rows <= ONE_THREAD_ROWS else (0,)
    found = []
    for isa in _isas(panel, weight, rows):
        for block, dot in _layouts(isa, rows):
            axes = (
                _row_tiles(isa, panel, weight, rows, dot),
                _splits(op, rows, block, many),
                _prefetches(isa, rows) if block else (0,),
                threads,
            )
            for row_tile, split, prefetch, count in itertools.product(*axes):
                found.append(_point(isa, block, dot, row_tile, split, prefetch, count))
    return tuple(found)


def _point(isa: str, block: int, dot: bool, row_tile: int, split: str, prefetch: int, threads: int) -> Point:
    layout: Point = {"block": block} if block else {"dot": dot}
    stream: Point = {"prefetch": prefetch} if block else {}
    return {"isa": isa, **layout, "row_tile": row_tile, "split": split, **stream, "threads": threads}


def _isas(panel: str, weight: str, rows: int) -> Iterator[str]:
    usable = _native.instruction_sets()
    tiles = "amx" in usable and panel == weight == "bf16"
    if tiles:
        yield "amx"
    if not tiles or rows <= VECTORS_MOST_ROWS:
        yield from [isa for isa in usable if isa != "amx"][:1]


def _layouts(isa: str, rows: int) -> Iterator[tuple[int, bool]]:
    if isa != "amx" and rows <= DOT_MOST_ROWS:
        yield 0, True
    if rows > VECTORS_MOST_ROWS:
        yield 0, False
    for block in BLOCKS:
        yield block, False


def _row_tiles(isa: str, panel: str, weight: str, rows: int, dot: bool) -> tuple[int, ...]:
    most = _native.row_tiles(isa, _native_dtype(panel), _native_dtype(weight), dot)
    if isa == "amx":
        return (min(most, next((tile for tile in AMX_ROW_TILES if rows <= tile), most)),)
    return (min(4, most),) if rows <= 4 or most <= 4 else (4, most)


def _splits(op: str, rows: int, block: int, many: bool) -> tuple[str, ...]:
    own = ("columns", "experts") if op == "experts" and block else ("columns",)
    return (*own, "tokens") if rows >= TOKENS_LEAST_ROWS and many else own


def _prefetches(isa: str, rows: int) -> tuple[int, ...]:
    return BLOCK_PREFETCHES if isa == "amx" and rows > STREAM_MOST_ROWS else STREAM_PREFETCHES


def _native_dtype(name: str) -> _native.Dtype:
    return _native.Dtype.bfloat16 if name == "bf16" else _native.Dtype.float32
