"""Whether the compiled kernels are there and can run here."""

from __future__ import annotations

import functools
import importlib


@functools.cache
def unavailable() -> str | None:
    """Why the native kernels cannot be used, with the remedy, or None."""
    try:
        compiled = importlib.import_module("tunebook.kernels._native._native")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):  # it is there and does not load: a library of another machine
            return f"the compiled kernels do not load ({error}); reinstall tunebook from source on this machine"
        return (
            "they were not compiled when tunebook was installed, as no working C++17 compiler was found; "
            "install one (on Debian and Ubuntu: apt install g++) and reinstall tunebook from source"
        )
    if not compiled.instruction_sets():
        return "they need an x86-64 processor with AVX2 and FMA"
    return None


def shared_objects() -> tuple[str, ...]:
    """The file of the compiled kernels, for the version of what runs on them."""
    if unavailable() is not None:
        return ()
    file = importlib.import_module("tunebook.kernels._native._native").__file__
    return () if file is None else (file,)
