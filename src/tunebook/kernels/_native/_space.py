"""The tactics of a shape, and the rules that leave out those that cannot win."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tunebook.kernels._native import _native
from tunebook.kernels._native._weights import BLOCKS

_DTYPES = {torch.bfloat16: _native.Dtype.bfloat16, torch.float32: _native.Dtype.float32}
#: Rows from which dot products along row-major weights read the weights too often to win.
DOT_MOST_ROWS = 16
#: Bytes ahead of a stream that are prefetched, and -1: the whole next block.
PREFETCHES = (0, 3072, -1)
#: Rows of AMX's tiles: one tile, two, or a panel that K is cut in chunks for.
AMX_ROW_TILES = (16, 32, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One tactic, its parameters by name. ``block`` 0 means row-major weights; ``columns`` 0: as many as suit."""

    isa: str
    block: int
    dot: bool
    row_tile: int
    columns: int
    split: str
    prefetch: int
    threads: int

    def native(self, backend: str = "auto") -> _native.Tactic:
        """What `linear` and `experts` take."""
        return tactic(
            isa=self.isa,
            dot=self.dot,
            row_tile=self.row_tile,
            columns=self.columns,
            split=self.split,
            prefetch=self.prefetch,
            threads=self.threads,
            backend=backend,
        )


def instruction_sets() -> list[str]:
    """Usable here, best first: of amx, avx512_bf16, avx512, avx2. Empty where the kernels cannot run."""
    return _native.instruction_sets()


def processors() -> int:
    """Processors that affinity and cgroup quota leave to this process."""
    return _native.processors()


def tactic(
    *,
    isa: str,
    dot: bool = False,
    row_tile: int = 4,
    columns: int = 0,
    split: str = "columns",
    prefetch: int = 0,
    threads: int = 1,
    backend: str = "auto",
) -> _native.Tactic:
    """How to compute a call.

    Args:
        isa: one of `instruction_sets`.
        dot: dot products along row-major weights instead of tiles, which pack each block before they use it.
        row_tile: rows of a tile; more than the instruction set has is as many as it has. AMX with more than 32 cuts K
            in chunks, each for all these rows.
        columns: result columns of one task; 0: as many as suit the threads and the cache.
        split: of the work: "columns"; "experts" (experts only: partial results of every pair, then their sum);
            "tokens": each thread takes a share of the tokens.
        prefetch: bytes ahead of the stream of weights; 0: none; -1: the next block, spread over the row tiles.
        threads: most threads to use.
        backend: "openmp": those of the OpenMP runtime that is loaded; "pool": our own; "auto": the first if there is one.

    Raises:
        ValueError: a value that is not among these.
    """
    return _native.tactic(
        isa=isa,
        dot=dot,
        row_tile=row_tile,
        columns=columns,
        split=split,
        prefetch=prefetch,
        threads=threads,
        backend=backend,
    )


def _isas(panel: torch.dtype, weight: torch.dtype) -> Iterator[str]:
    """The best instruction set of each kind of product: tiles of AMX, vectors of the widest other."""
    usable = instruction_sets()
    if "amx" in usable and panel == weight == torch.bfloat16:
        yield "amx"
    yield from [isa for isa in usable if isa != "amx"][:1]


def _row_tiles(isa: str, panel: torch.dtype, weight: torch.dtype, rows: int, dot: bool) -> list[int]:
    most = _native.row_tiles(isa, _DTYPES[panel], _DTYPES[weight], dot)
    useful = [tile for tile in (AMX_ROW_TILES if isa == "amx" and most > 32 else (4, 6)) if tile <= most] or [most]
    return [tile for i, tile in enumerate(useful) if i == 0 or useful[i - 1] < rows]


def space(op: str, *, rows: int, panel: torch.dtype, weight: torch.dtype, threads: int) -> list[Choice]:
    """Tactics of "linear" or "experts" worth trying with so many rows, for experts the rows of a usual expert.

    The rules: the widest instruction set of each kind; dot products up to `DOT_MOST_ROWS` rows; a second row tile only
    if the first does not take all rows; prefetching and column groups on packed weights only; the token split with
    at least one row tile for each thread, and only with more than one.
    """
    found: list[Choice] = []
    for isa in _isas(panel, weight):
        if rows <= DOT_MOST_ROWS and isa != "amx":
            found += _layout_choices(op, isa, 0, True, _row_tiles(isa, panel, weight, rows, True), rows, threads)
        tiles = _row_tiles(isa, panel, weight, rows, False)
        for block in (0, *BLOCKS):
            found += _layout_choices(op, isa, block, False, tiles, rows, threads)
    return found


def _layout_choices(
    op: str, isa: str, block: int, dot: bool, tiles: list[int], rows: int, threads: int
) -> Iterator[Choice]:
    splits = ["columns", *(["experts"] if op == "experts" else [])]
    for tile in tiles:
        for split in [*splits, *(["tokens"] if threads > 1 and rows >= threads * tile else [])]:
            for prefetch in PREFETCHES if block else (0,):
                for columns in (0, 256) if block else (0,):
                    yield Choice(
                        isa=isa,
                        block=block,
                        dot=dot,
                        row_tile=tile,
                        columns=columns,
                        split=split,
                        prefetch=prefetch,
                        threads=threads,
                    )
