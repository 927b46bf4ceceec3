"""The files that a module is made of: what it imports from its own directory tree, found without importing anything."""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
import time
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from tunebook.errors import OpError

PACKAGE = Path(__file__).parent.parent
#: A file that changed this recently may change again within the clock's grain, unseen by size and time.
_SETTLED_NS = 2_000_000_000


def local_files(file: Path, module_name: str = "") -> tuple[Path, ...]:
    """`file` and what it imports from its own directory tree, in turn, without importing any of it."""
    tree = _Tree.of(file, module_name)
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found[current] = None
        if not is_extension(current):
            waiting.extend(path for reference in _imports(current) for path in tree.resolve(reference, current))
    return tuple(found)


class _Import(NamedTuple):
    """``from <level dots><module> import <names>``; a plain import has no names."""

    level: int
    module: tuple[str, ...]
    names: tuple[str, ...] = ()


class _Tree(NamedTuple):
    """Where local imports may lie: looked up under `roots`, kept when under `limit`."""

    roots: tuple[Path, ...]
    limit: Path

    @classmethod
    def of(cls, file: Path, module_name: str) -> _Tree:
        if PACKAGE in file.parents:  # ours: the shipped kernels follow each other, not the whole of tunebook
            return cls((PACKAGE.parent,), PACKAGE / "kernels")
        own = file.parent if file.name == "__init__.py" else file.with_suffix("")
        names = tuple(module_name.split("."))
        base = own.parent
        if own.parts[-len(names) :] == names:  # a namespace package has no __init__.py, its module's name tells
            base = own.parents[len(names) - 1]
        while (base / "__init__.py").is_file():
            base = base.parent
        return cls(tuple(dict.fromkeys((file.parent, base))), base)

    def resolve(self, reference: _Import, importer: Path) -> tuple[Path, ...]:
        """The local files that an import statement in `importer` loads; none if it names something from elsewhere."""
        if reference.level:
            roots: tuple[Path, ...] = (importer.parents[min(reference.level, len(importer.parents)) - 1],)
        else:
            roots = self.roots
        # Which root comes first depends on how the program was started: what any of them holds counts.
        found = dict.fromkeys(path for root in roots for path in _under(root, reference, importer))
        return tuple(path for path in found if self._holds(path))

    def _holds(self, path: Path) -> bool:
        ours = PACKAGE in path.parents and PACKAGE not in self.limit.parents
        return self.limit in path.parents and not ours and not is_installed(path)


def _under(root: Path, reference: _Import, importer: Path) -> Iterator[Path]:
    _, module, names = reference
    package = root.joinpath(*module)
    submodules = [path for name in names if (path := _find(package, name))]
    if "*" in names:  # a package's __all__ may name any of its modules
        submodules += sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
    takes = "*" in names or len(submodules) < len(names)
    for depth in range(len(module) + 1):
        path = _find(root.joinpath(*module[: depth - 1]), module[depth - 1]) if depth else _init(package, module)
        if path is None or path == importer:
            continue
        # The package that the importer itself lies in is run before it, and may name all that the project has. It
        # counts only where something is taken from it: else an edit of any kernel would age every other.
        outer = path.name == "__init__.py" and path.parent in importer.parents
        if not outer or not names or (takes and depth == len(module)):
            yield path
    yield from submodules


def _init(package: Path, module: tuple[str, ...]) -> Path | None:
    """The file of ``from . import name``, where the dots alone name the package."""
    path = package / "__init__.py"
    return path if not module and path.is_file() else None


def _find(folder: Path, name: str) -> Path | None:
    """The file of the module `name` in `folder`, in the interpreter's own order: package, extension, source."""
    for path in (
        folder / name / "__init__.py",
        *(folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES),
        folder / f"{name}.py",
    ):
        if path.is_file():
            return path
    return None


def _imports(file: Path) -> tuple[_Import, ...]:
    """Every import of a source file, also inside functions, and ``import_module("literal")``."""
    return _imports_of(file.read_bytes(), content_hash(file))


_parsed: dict[str, tuple[_Import, ...]] = {}


def _imports_of(source: bytes, digest: str) -> tuple[_Import, ...]:
    if digest not in _parsed:
        found: list[_Import] = []
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):  # a broken helper still counts with its content
            nodes = []
        for node in nodes:
            match node:
                case ast.Import(names=names):
                    found += [_Import(0, tuple(alias.name.split("."))) for alias in names]
                case ast.ImportFrom(module=module, names=names, level=level):
                    dotted = tuple(module.split(".")) if module else ()
                    found.append(_Import(level, dotted, tuple(alias.name for alias in names)))
                case ast.Call(
                    func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    bare = name.lstrip(".")
                    found.append(_Import(len(name) - len(bare), tuple(bare.split(".")) if bare else ()))
        _parsed[digest] = tuple(dict.fromkeys(found))
    return _parsed[digest]


_hashes: dict[tuple[str, int, int], str] = {}


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, kept until its time or size changes. Raises OpError where it cannot be read."""
    try:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in _hashes or time.time_ns() - status.st_mtime_ns < _SETTLED_NS:
            with path.open("rb") as stream:
                _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OpError(f"cannot read {path} for the version of a runner: {error.strerror}") from error
    return _hashes[key]


def is_extension(path: Path) -> bool:
    return path.name.endswith(tuple(EXTENSION_SUFFIXES))


@functools.cache
def _standard_library() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})


def is_installed(path: Path) -> bool:
    """Whether a package manager, not a developer, put the file there."""
    if PACKAGE in path.parents:
        return False
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return installed or any(folder in path.parents for folder in _standard_library())
