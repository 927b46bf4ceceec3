"""What a start without arguments would know: this environment's cache over the search path, and which file answers what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.cli._output import say
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.records import Environment, Verdict
    from tunebook.store import CacheContents
    from tunebook.store.search_path import Shipped

VARIABLE = "TUNEBOOK_CACHE_PATH"


@dataclass(frozen=True, kw_only=True)
class Served:
    """The cache at `path`, if it is `there`, and what the search path adds; `contents` is both."""

    path: Path
    there: bool
    own: CacheContents
    shipped: tuple[Shipped, ...]
    contents: CacheContents

    @property
    def empty(self) -> bool:
        """Whether there is neither a cache nor anything on the search path that serves."""
        return not self.there and all(one.problem is not None for one in self.shipped)

    def origins(self, verdicts: Mapping[str, Verdict]) -> dict[str, Path]:
        """Of these verdicts those that come from the search path, each with the file that holds it."""
        from tunebook.store.search_path import origin_of

        found = {key: origin_of(verdict, self.own, self.shipped) for key, verdict in verdicts.items()}
        return {key: one.path for key, one in found.items() if one is not None}


def served(path: Path, environment: Environment) -> Served:
    """What a start in this environment reads. Raises StoreError for a cache that is there and cannot be read."""
    from tunebook.store import Run, read_any, read_cache
    from tunebook.store.search_path import over_shipped, read_search_path

    shipped = read_search_path(environment, loud=False)
    there = path.exists() or path.with_name(f"{path.name}.d").is_dir()
    own = read_any(path) if there else read_cache(path, environment)
    if isinstance(own, Run):  # it is read wherever a cache is
        own = read_cache(path, environment)
    return Served(path=path, there=there, own=own, shipped=shipped, contents=over_shipped(own, shipped))


def described(shipped: Iterable[Shipped]) -> list[dict[str, Any]]:
    """Each entry of the search path: what it names, the file that is read, what serves, and why nothing or not all does."""
    return [
        {
            "entry": str(one.entry),
            "path": str(one.path),
            "verdicts": 0 if one.problem else len(one.contents.verdicts),
            "plans": 0 if one.problem else len(one.contents.plans),
            "problem": str(one.problem) if one.problem else None,
            "misses": [str(miss) for miss in one.misses],
        }
        for one in shipped
    ]


def say_origins(origins: Mapping[str, Path | str]) -> None:
    """A line for each file of the search path that answers some of these problems."""
    for path, count in sorted(Counter(map(str, origins.values())).items()):
        say(f"{count} of the winners come from {clean(path)} ({VARIABLE})")


def labels(origins: Mapping[str, Path | str]) -> dict[str, str]:
    """By problem, what stands for its file in a column: the file's name, or its path where two have the same name."""
    paths = {str(path) for path in origins.values()}
    names = Counter(Path(path).name for path in paths)
    short = {path: clean(Path(path).name if names[Path(path).name] == 1 else path) for path in paths}
    return {key: short[str(path)] for key, path in origins.items()}
