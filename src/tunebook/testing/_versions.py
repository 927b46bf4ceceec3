"""What a runner's version promises: another version whenever its code is another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from tunebook.ops import Runner, runner_version
from tunebook.ops._localfiles import is_installed, local_files
from tunebook.testing._failure import broken, no_exception

#: What of a runner computes weights or outputs; the other hooks only speak of them.
_CODE = ("function", "prepare", "restore", "convert", "bind")


def check_version(thing: str, runner: Runner) -> None:
    """It can be computed, is the same twice, and covers all code of the runner. One that is declared speaks for itself."""
    with no_exception(thing, "its version cannot be computed:", "correct sources=, or declare version="):
        version = runner.version
        again = runner_version(
            runner.function, sources=runner.sources, declared=runner.declared_version, libraries=runner.libraries
        )
    if version != again:
        broken(thing, f"its version is {version}, then {again}", "do not change its files while it runs")
    if runner.declared_version is not None:
        return
    own = _file(runner.function)
    module = getattr(runner.function, "__module__", "") or ""
    covered = {path.resolve() for path in local_files(own, module)} if own is not None else set()
    if own is not None:
        covered |= {(own.parent / source).resolve() for source in runner.sources}
    for hook in _CODE:
        code = getattr(runner, hook)
        if code is None:
            continue
        captured = _captured(code)
        if captured:
            broken(
                thing,
                f"its {hook} captures {captured}, a value that its version does not cover",
                "give it in space=, take it from the module, or declare version=",
            )
        file = _file(code)
        if own is not None and file is not None and file.resolve() not in covered and not is_installed(file):
            broken(
                thing,
                f"its {hook} is in {file.name}, which its version does not cover",
                f"import that in {own.name}, or name it in sources=",
            )


def _file(function: Callable[..., Any]) -> Path | None:
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return Path(found) if found and Path(found).is_file() else None


def _captured(function: Any) -> str:
    """The name of a captured value that code does not spell out: a tensor, a list, a mapping; empty where there is none.

    Numbers and texts are taken for what a function of the same module was called with, which is covered.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return ""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not there yet: a function that names itself
            continue
        if isinstance(value, list | dict | set) or hasattr(value, "untyped_storage"):
            return name
    return ""
