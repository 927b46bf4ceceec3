"""The registry of environment variables, and the only module that reads the process environment.

    from tunebook.envs import envs

    envs.TUNEBOOK_AUTOTUNE_CACHE.get()                # typed: bool
    with envs.TUNEBOOK_AUTOTUNE_CACHE.override(False):
        ...

Every variable has `get / set / override / clear / is_set / source`. An argument given in code goes before a variable,
and a variable before its default; that order is kept by whoever takes the argument.
"""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from tunebook._envfields import (
    EnvBool,
    EnvFloat,
    EnvInt,
    EnvMemory,
    EnvPath,
    EnvPaths,
    EnvStr,
    EnvTuple,
)
from tunebook._envvars import Alias, Computed, EnvField, Reading, Registry, Variable
from tunebook.errors import EnvironmentVariableError

__all__ = [
    "Alias",
    "Computed",
    "EnvBool",
    "EnvField",
    "EnvFloat",
    "EnvInt",
    "EnvMemory",
    "EnvPath",
    "EnvPaths",
    "EnvStr",
    "EnvTuple",
    "Envs",
    "Reading",
    "Registry",
    "Row",
    "Variable",
    "envs",
]

PREFIX = "TUNEBOOK_"

Plain = bool | int | float | str | tuple[str, ...] | None


def _user_cache_dir() -> Path:
    import platformdirs  # late: only needed where the variable is not set

    try:
        return Path(platformdirs.user_cache_dir("tunebook", appauthor=False))
    except RuntimeError:
        # neither HOME nor an entry for the user: nothing is kept, and who tries to keep it names this path
        return Path(os.devnull) / "no-home-directory-is-known"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variable as a table shows it. Where the text in the environment is wrong, `error` says so, `value` is None.

    `default` and `value` can be written as JSON (paths are texts); `default_text` and `value_text` are for people, as
    they would be written in the environment, and `default_text` is the same on every platform.
    """

    name: str
    type: str
    default: Plain
    default_text: str
    value: Plain
    value_text: str
    error: str | None
    source: str
    aliases: tuple[str, ...]
    accepts: str
    help: str
    deprecated: str | None


def _plain(value: object) -> Plain:
    if isinstance(value, tuple):
        return tuple(map(str, value))
    return value if isinstance(value, bool | int | float | str | None) else str(value)


class Envs(Registry):
    """tunebook's variables. `docs/environment.md` is generated from this class: `python scripts/generate_docs.py`."""

    TUNEBOOK_AUTOTUNE = EnvBool(
        True,
        help="Whether anything is tuned. On: what the cache does not answer is tuned. Off: nothing is ever tuned; what "
        "the cache knows is served, and the default tactic where it knows nothing.",
    )
    TUNEBOOK_AUTOTUNE_CACHE = EnvBool(
        True,
        aliases=(Alias("SGLANG_FLASHINFER_AUTOTUNE_CACHE", owner="SGLang"),),
        help="Whether the tuning cache is reused. On: its results are served, what is missing is tuned and added. Off: "
        "everything is tuned afresh and written to `runs/<cache stem>.<timestamp>.jsonl` beside the cache; the cache "
        "itself is neither read nor touched. Left off, it costs a full tuning at every start.",
    )
    TUNEBOOK_CACHE_DIR = EnvPath[Path](
        Computed(_user_cache_dir, "the platform's cache folder for tunebook; on Linux ~/.cache/tunebook"),
        help="The folder of tuning caches, run files and converted models. It is created when first written to. "
        "A relative path counts from the working directory.",
    )
    TUNEBOOK_CACHE_PATH = EnvPaths(
        (),
        help="Caches that were shipped, with a container image for example: files (bundles of `tunebook export`, caches, runs) "
        "or directories, in which `autotune/<environment digest>/winners.json` is read, else `<environment digest>.tunebook`. "
        "They are read after the cache itself, in this order, and never written. What is wrong with one is a warning. Not read "
        "where everything is tuned afresh.",
    )
    TUNEBOOK_BUDGET_S = EnvFloat(
        120.0,
        above=0,
        help="Seconds that one tuning may take. The costliest problems are tuned first; what is left out is named in the "
        "report, and `tunebook tune --continue` goes on with it.",
    )
    TUNEBOOK_ISOLATE = EnvStr(
        "unproven",
        choices=("always", "unproven", "never"),
        help="Which tactics are first run in a worker process, where a crash, a hang or a want of memory harms nobody: those "
        "that are not known to be right on the problem (`unproven`), all (`always`), or none (`never`).",
    )
    TUNEBOOK_ISOLATE_TIMEOUT_S = EnvFloat(
        60.0,
        above=0,
        help="Seconds after which a first run in the worker process is given up as hung: for preparing weights, and for each "
        "input that the tactic is checked on. Large weights and slow defaults add to it.",
    )
    TUNEBOOK_COVERAGE = EnvBool(
        False,
        help="Whether calls are counted while a model serves: of each problem how many, and what served them. "
        "`tunebook coverage` shows the counts. It is asked for when a model is attached, and when an op is first called; each "
        "call then costs about a tenth of a microsecond more.",
    )
    TUNEBOOK_COVERAGE_FILE = EnvPath[None](
        None,
        help="The file that the counts are added to. None: `coverage.json` beside this environment's cache. Name one where "
        "that place cannot be written, or where the cache is one that you name.",
    )
    TUNEBOOK_THREADS = EnvInt(
        None,
        minimum=1,
        help="Threads that kernels run on, while tuning and while serving. None: as many as torch decides. Results of "
        "different thread counts are kept apart.",
    )
    TUNEBOOK_LOG_LEVEL = EnvStr(
        "INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="The least severe log message that is shown.",
    )
    TUNEBOOK_MEMORY_LIMIT = EnvMemory[None](
        None,
        help="What a model's weights may take in all while a plan serves: the original ones that are kept, and those that "
        "are prepared in other layouts. None: the limit that the cached plan was made for, else 1.1x.",
    )
    TUNEBOOK_MEMORY_LIMIT_GB = EnvFloat(
        None,
        above=0,
        help="Memory, in GB of 10⁹ bytes, that a single tactic may need beyond the model itself, for its workspace or "
        "its prepared weights; a tactic that needs more is rejected without being run. None: a share of what is free.",
    )
    TUNEBOOK_FLASHINFER = EnvBool(
        False,
        help="In SGLang and in vLLM: whether their autotuning of FlashInfer's kernels is tunebook's. Read by the plug-ins that "
        "these engines load in each of their processes; nothing else has to be set or imported.",
    )
    TUNEBOOK_RANK_TIMEOUT_S = EnvFloat(
        120.0,
        above=0,
        help="Seconds after which a rank that gives no sign of life ends a tuning of several ranks "
        "(`autotune(group=…)`) on all of them, with an error that names it. Ranks that are at work tell so all the time: "
        "a long tuning does not end by this. The same on every rank.",
    )

    def rows(self) -> tuple[Row, ...]:
        """Every variable as it stands, in the order of declaration. Wrong texts are reported in the row, not raised."""
        rows = []
        for variable in self.variables():
            field, reading = variable.field, variable.reading()
            rows.append(
                Row(
                    name=field.name,
                    type=field.type_name,
                    default=_plain(field.default()),
                    default_text=field.default_text,
                    value=_plain(reading.value),
                    value_text="" if reading.error is not None else field.render(reading.value),
                    error=reading.error,
                    source=reading.source,
                    aliases=tuple(alias.name for alias in field.aliases),
                    accepts=field.accepts,
                    help=field.help,
                    deprecated=field.deprecated,
                )
            )
        return tuple(rows)

    def misspelt(self) -> dict[str, str | None]:
        """The names in the environment that look like ours but are not, each with the nearest of ours or None."""
        known = {field.name for field in self.fields()}
        names = known | {alias.name for field in self.fields() for alias in field.aliases}
        # Compared without the prefix: shared by all, it would make everything look alike.
        ours = {name.removeprefix(PREFIX): name for name in sorted(known)}
        found = {}
        for name in sorted(self.environ):
            if name.upper().startswith(PREFIX) and name not in names:
                near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), ours, n=1)
                found[name] = ours[near[0]] if near else None
        return found

    def check(self) -> None:
        """Warn, once each, about names that are misspelt; then read everything.

        Raises EnvironmentVariableError naming every variable whose text cannot be used, a line each.
        """
        for name, near in self.misspelt().items():
            hint = f"did you mean {near}?" if near else "'tunebook env' lists those there are."
            self.say_once(logging.WARNING, f"{name} is not a variable of tunebook and has no effect; {hint}")
        errors = [row.error for row in self.rows() if row.error is not None]
        if errors:
            raise EnvironmentVariableError("\n".join(errors))


envs = Envs(os.environ)


def ask_for_huge_pages() -> None:
    """Have PyTorch's CPU allocator ask for huge pages, unless the user said otherwise; before torch allocates anything.

    Weights that are packed in place stay on the pages that they were loaded to, and a stream over small pages is slower by
    a fifth or more. The variable is PyTorch's own (``THP_MEM_ALLOC_ENABLE``).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
