"""The tuning that would cover what was served untuned: sizes out of the calls, as a command to paste."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tunebook.book._place import place_of
from tunebook.book._problem_coverage import ProblemCoverage
from tunebook.records import Problem, Record
from tunebook.records.coverage import MAX_PREFILL

#: So many sizes are asked for of each phase: the largest, with which all smaller buckets are tuned, and those called most.
MOST_SIZES = 4
#: Stands in a command for a model that no run tells how to load.
MODEL = "MODEL"

#: What loads a model, empty where nothing is known, and the files with further runners.
Origin = tuple[str, tuple[str, ...]]


class Suggestion(Record, frozen=True, kw_only=True, omit_defaults=False):
    """What to tune of one model. `source` is what `tunebook tune` loads, empty where no run beside the cache tells.

    `files` are those with further runners that its last tuning was given. `decode` and `prefill` are sizes to ask for;
    `continuing`: some problems were left out by an earlier tuning. `problems` is how many lack a tuning.
    """

    model: str
    tuned_as: str
    source: str
    files: tuple[str, ...]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    continuing: bool
    problems: int

    def command(self, *more: str) -> tuple[str, ...]:
        """The command as words, with `more` options at its end."""
        words = ["tunebook", "tune", self.source or MODEL]
        for file in self.files:
            words += ["--with", file]
        words += ["--decode", ",".join(map(str, self.decode)), "--prefill", ",".join(map(str, self.prefill))]
        return (*words, *(("--continue",) if self.continuing else ()), *more)


def suggest(rows: Sequence[ProblemCoverage], name: str, origin: Origin) -> Suggestion:
    """What to tune for these problems of the model that was tuned as `name`, if it was, and is loaded so."""
    source, files = origin
    decode, prefill = sizes(rows)
    return Suggestion(
        model=rows[0].model,
        tuned_as=name,
        source=source,
        files=files,
        decode=decode,
        prefill=prefill,
        continuing=any(row.left_out for row in rows),
        problems=len(rows),
    )


def sizes(rows: Sequence[ProblemCoverage]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The decode batches and prefill lengths whose dummy runs meet these problems.

    Where the calls do not tell which phase they belong to (their arguments are flat rows), a prefill of as many tokens is
    asked for, unless the sizes of others reach as far.
    """
    decode: Counter[int] = Counter()
    prefill: Counter[int] = Counter()
    flat = 0
    for row in rows:
        if row.decode:
            decode[row.decode] += row.untuned
        if row.prefill:
            prefill[row.prefill] += row.untuned
        if not row.decode and not row.prefill:
            flat = max(flat, math.prod(dim.size for dim in Problem.parse(row.problem).dims))
    if flat and 2 * max((*decode, *prefill), default=0) <= flat:
        (prefill if flat > 1 else decode)[min(flat, MAX_PREFILL)] += 1
    return _foremost(decode), _foremost(prefill)


def _foremost(calls: Counter[int]) -> tuple[int, ...]:
    """The largest size and those called most, ascending."""
    ranked = sorted(calls, key=lambda size: (-calls[size], size))
    return tuple(sorted({*ranked[: MOST_SIZES - 1], *(() if not calls else (max(calls),))}))


def origin_of(cache: str, name: str) -> Origin:
    """What loads the model that was tuned as `name`, as the newest run beside the cache says that tells."""
    for head in place_of(Path(cache)).heads(name) if name and cache else ():
        source = head.header.settings.source
        if source and not source.startswith("-"):
            return source, head.header.settings.files
    return "", ()
