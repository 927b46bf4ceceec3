"""Where a tuning is kept: the cache, the runs beside it, and the description of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.records import Environment
from tunebook.store._text import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The paths of one tuning, absolute, none of them created yet.

    `environment_file` is None for a cache that the user named: such a file says itself what it was made for.
    """

    cache: Path
    runs: Path
    environment_file: Path | None
    explicit: bool

    @property
    def stem(self) -> str:
        """What the names of the run files begin with."""
        return self.cache.stem

    @classmethod
    def of(cls, environment: Environment, cache: Path | str | None = None) -> Location:
        """`cache` if given (``~`` expanded), else ``<TUNEBOOK_CACHE_DIR>/autotune/<environment digest>/winners.json``.

        Raises ``UsageError`` for a directory and for what cannot be a path at all.
        """
        if cache is None:
            folder = Path(envs.TUNEBOOK_CACHE_DIR.get()).absolute() / "autotune" / environment.digest
            return cls(
                cache=folder / "winners.json",
                runs=folder / "runs",
                environment_file=folder / "environment.json",
                explicit=False,
            )
        shown = one_line(cache)
        if "\0" in str(cache):
            raise UsageError(f"cache={shown!r} holds a null character; give the path of a file, e.g. tuned.json")
        try:
            path = Path(cache).expanduser().absolute()
        except RuntimeError as error:  # pathlib's answer to an unknown user, or to no home at all
            raise UsageError(f"cache={shown}: {error}; give the path in full") from error
        try:
            directory = path.is_dir()
        except OSError:
            directory = False  # reading and publishing say what is the matter, with the tuning still served
        if directory:
            example = path / "winners.json"
            raise UsageError(f"cache={shown} is a directory; give the path of a file, e.g. {one_line(example)}")
        return cls(cache=path, runs=path.parent / "runs", environment_file=None, explicit=True)
