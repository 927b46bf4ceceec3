"""The version of a runner: a digest of everything that its code is made of, so that an edit is noticed.

It depends on contents alone: neither on where the files lie, nor on when they were written, nor on the process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tunebook.errors import OpError
from tunebook.ops._localfiles import content_hash, is_extension, is_installed, local_files

#: Part of every digest: raise it when the recipe changes, and every runner races again once.
_RECIPE = "runner-version-1"


def runner_version(
    function: Callable[..., Any],
    *,
    sources: Sequence[str | Path] = (),
    declared: str | None = None,
    libraries: Sequence[str] = (),
) -> str:
    """The version of the runner that `function` is: ``"v:" + declared``, else 12 hexadecimal digits.

    The digest covers the module that defines `function`; the modules that it imports from its own directory tree, in
    turn (found in the source, nothing is imported); the shared objects that these hold as ``ctypes.CDLL`` or import;
    the files named in `sources` (relative to the module's directory); and the installed versions of the distributions
    named in `libraries`. A function without a source file is covered by its bytecode. Ask before the runner is first
    called: a library that is loaded in the first call is seen only afterwards. Values that a closure captured are not
    covered: declare a version for those.

    Raises OpError where a source is missing, and where a declared version is empty.
    """
    if declared is not None:
        if not declared.strip():
            raise OpError(f"runner {_name(function)}: the declared version is empty; leave it out to have one computed")
        return f"v:{declared}"
    target = _defined(function)
    file, bare = _defining_file(target)
    parts = {
        f"function {_name(_unwrapped(function))}",
        *(f"library {name} {_installed_version(name)}" for name in libraries),
    }
    if bare:
        parts.add(f"bytecode {_bytecode(target)}")
    directory = file.parent if file else Path.cwd()
    if file is not None:
        namespace = getattr(target, "__globals__", {})
        parts.update(_files(file, getattr(target, "__module__", None) or "", namespace))
    for source in sources:
        path = directory / source
        if not path.is_file():
            raise OpError(f"runner {_name(target)}: no source {source} in {directory}; name it relative to its module")
        name = os.path.relpath(path, directory) if directory in path.parents else path.name
        parts.add(f"source {Path(name).as_posix()} {content_hash(path)}")
    return hashlib.sha256("\n".join([_RECIPE, *sorted(parts)]).encode()).hexdigest()[:12]


def _files(file: Path, module_name: str, namespace: Mapping[str, object]) -> Iterator[str]:
    """One line for each file that the module `file` is made of."""
    if is_installed(file):
        yield f"module {file.name} {content_hash(file)}"
        yield f"record {_record(file)}"
        return
    local = local_files(file, module_name)
    loaded = _loaded_from(local)
    for path in local:
        if is_extension(path):
            yield f"shared object {content_hash(path)}"
            continue
        yield f"module {Path(os.path.relpath(path, file.parent)).as_posix()} {content_hash(path)}"
        for library in _shared_objects(namespace if path == file else loaded.get(path, {}), path.parent):
            yield f"shared object {content_hash(library)}"


def _loaded_from(files: Sequence[Path]) -> dict[Path, Mapping[str, object]]:
    """The globals of the modules that are loaded from `files`, by file."""
    names = {path.name for path in files}
    found: dict[str, Mapping[str, object]] = {}
    for module in list(sys.modules.values()):
        # Only the dictionary is read: a lazy module would start to import when it is asked for an attribute.
        space: Mapping[str, object] = getattr(module, "__dict__", {})
        file = space.get("__file__")
        if isinstance(file, str) and os.path.basename(file) in names:
            found[os.path.realpath(file)] = space
    return {path: found[real] for path in files if (real := os.path.realpath(path)) in found}


def _shared_objects(namespace: Mapping[str, object], directory: Path) -> Iterator[Path]:
    """The shared objects in a module's globals. A bare name such as ``libc.so.6`` is the system's and not followed."""
    ctypes = sys.modules.get("ctypes")  # not loaded: then nothing can be an instance of it
    for value in list(namespace.values()):
        if ctypes is not None and isinstance(value, ctypes.CDLL):
            name = getattr(value, "_name", None)
            if name and (path := next((p for p in (Path(name), directory / name) if p.is_file()), None)):
                yield path
        elif isinstance(value, ModuleType) and isinstance(name := vars(value).get("__file__"), str):
            path = Path(name)
            if is_extension(path) and not is_installed(path) and path.is_file():
                yield path


def _unwrapped(function: Callable[..., Any]) -> Any:
    """What is below partials, methods, decorators and compiled wrappers that keep what they wrap."""
    target: Any = function
    for _ in range(100):  # a wrapper that names itself must not hang us
        if isinstance(target, functools.partial):
            target = target.func
            continue
        inner = getattr(target, "__wrapped__", None) or getattr(target, "__func__", None)
        if not callable(inner):
            break
        target = inner
    return target


def _defined(function: Callable[..., Any]) -> Any:
    """The Python function that runs when `function` is called; `function`'s own object where there is none."""
    target = _unwrapped(function)
    if not hasattr(target, "__code__"):
        for inner in (getattr(target, "fn", None), type(target).__call__):  # first as triton's jitted functions have it
            if isinstance(inner, FunctionType):
                return inner
    return target


def _defining_file(target: Any) -> tuple[Path | None, bool]:
    """The file that defines `target`, and whether its bytecode has to speak for it (or for part of it)."""
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    name = vars(module).get("__file__") if module else None
    file = Path(name) if isinstance(name, str) and Path(name).is_file() and not name.endswith(".pyc") else None
    code = getattr(target, "__code__", None)
    if not isinstance(code, CodeType):
        return file, False
    written = Path(os.path.abspath(code.co_filename))
    if written.is_file():
        return written, False
    return file, file is None or file.name != written.name


def _bytecode(target: Any, seen: frozenset[int] = frozenset()) -> str:
    """A digest of a function's instructions, constants, names and defaults, and of the like functions that it calls."""
    code = getattr(target, "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    seen |= {id(target)}
    defaults = (target.__defaults__, target.__kwdefaults__ and tuple(sorted(target.__kwdefaults__.items())))
    called = []
    for name in sorted(_global_names(code)):
        other = target.__globals__.get(name)
        if isinstance(other, FunctionType) and id(other) not in seen and _defining_file(other)[1]:
            called.append(f"{name} {_bytecode(other, seen)}")
    return hashlib.sha256("\n".join([_constant(code), _constant(defaults), *called]).encode()).hexdigest()


def _global_names(code: CodeType) -> set[str]:
    nested = (value for value in code.co_consts if isinstance(value, CodeType))
    return set(code.co_names).union(*(_global_names(value) for value in nested))


def _constant(value: object) -> str:
    """A text of a constant that is the same in every process: no addresses, no order of a set."""
    if isinstance(value, CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return f"code({value.co_code.hex()},{value.co_exceptiontable.hex()},{names},{_constant(value.co_consts)})"
    if isinstance(value, (tuple, frozenset)):
        items = [_constant(item) for item in value]
        return f"{type(value).__name__}({','.join(sorted(items) if isinstance(value, frozenset) else items)})"
    plain = value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, slice))
    return f"{type(value).__qualname__}:{value!r}" if plain else type(value).__qualname__


@functools.cache
def _record(file: Path) -> str:
    """A digest of what the installer noted of each file of the package that `file` belongs to."""
    site = next((p for p in file.parents if p.name in ("site-packages", "dist-packages")), None)
    if site is None:
        return sys.version
    top = file.relative_to(site).parts[0]
    lines = [
        line
        for record in site.glob("*.dist-info/RECORD")
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith((f"{top}/", f"{top},")) and ".pyc," not in line
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _name(function: Any) -> str:
    names = (getattr(function, "__qualname__", None), getattr(function, "__name__", None), type(function).__name__)
    return next(str(name) for name in names if name)
