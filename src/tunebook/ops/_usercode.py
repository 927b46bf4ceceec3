"""Import a Python file that a user names on the command line; whatever goes wrong in it is one line."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import sys
import threading
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tunebook.errors import UserCodeError
from tunebook.ops._localfiles import local_files

_log = logging.getLogger("tunebook.ops")
_lock = threading.RLock()
_LONGEST = 400


def load_file(path: str | Path) -> ModuleType:
    """Import the ``.py`` file at `path`, for what it registers, and give its module.

    The module's name is made from the file's name and place, so that it clashes with nothing. The same file twice is
    the same module; a change of the file in between is not seen. Imports find what lies beside the file: its directory
    comes first on ``sys.path`` meanwhile, and last afterwards, for imports inside functions.

    Raises UserCodeError, in one line with file and line number, where the file is missing or its import fails. What it
    had registered before it failed stays registered.
    """
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:  # an unknown user, or no home at all
        raise UserCodeError(f"{path}: {error}; give the path in full") from None
    if not file.exists():
        raise UserCodeError(f"{path}: there is no such file")
    if not file.is_file() or file.suffix != ".py":
        raise UserCodeError(f"{path}: not a Python file; give the path of a .py file")
    file = file.resolve()
    with _lock:
        loaded = _already_loaded(file)
        return loaded if loaded is not None else _load(file, str(path))


class _Loader(SourceFileLoader):
    """Compiles each time: compiled files are kept by size and second, and would hide a quick edit."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path)
        return compile(source, self.path, "exec", dont_inherit=True)


def _load(file: Path, shown: str) -> ModuleType:
    name = _module_name(file)
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    directory = str(file.parent)
    known = directory in sys.path
    sys.modules[name] = module
    sys.path.insert(0, directory)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise UserCodeError(_explain(error, file, shown)) from error
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if directory in sys.path:
            sys.path.remove(directory)
    if not known:
        sys.path.append(directory)
    _warn_of_hidden(file)
    return module


def _module_name(file: Path) -> str:
    stem = re.sub(r"\W", "_", file.stem)
    return f"tunebook_user_{stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _already_loaded(file: Path) -> ModuleType | None:
    """The module of `file` by whatever name it was imported, except the running script, which may be half done."""
    for name, module in list(sys.modules.items()):
        if name not in ("__main__", "__mp_main__") and getattr(module, "__dict__", {}).get("__file__") == str(file):
            return module
    return None


def _explain(error: BaseException, file: Path, shown: str) -> str:
    """``my_kernels.py:12: ImportError: …`` and, where it happened deeper, in which local file."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    if isinstance(error, SystemExit):
        text = f"the file exits ({error.code!r}) while it is imported"
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.lineno]
    own = next((frame.lineno for frame in reversed(frames) if frame.filename == str(file)), None)
    deeper = next((f for f in reversed(frames) if Path(f.filename).is_relative_to(file.parent)), None)
    place = (deeper.filename, deeper.lineno) if deeper else None
    if isinstance(error, SyntaxError) and error.filename:
        place = (error.filename, error.lineno)
        if error.filename == str(file):
            own = error.lineno
    if place and place[0] != str(file):
        message += f" ({Path(place[0]).name}:{place[1]})"
    return f"{shown}:{own}: {message}" if own else f"{shown}: {message}"


def _warn_of_hidden(file: Path) -> None:
    """Say so where a module beside `file` was not what its import got, as another of that name had been loaded."""
    for local in local_files(file):
        loaded = sys.modules.get(local.stem)
        other = getattr(loaded, "__dict__", {}).get("__file__")
        if local.parent == file.parent and other and Path(other).resolve() != local.resolve() and local != file:
            _log.warning("%s imports %s, but gets %s, loaded before; rename one", file.name, local.name, other)
