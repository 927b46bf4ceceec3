"""Where ops and runners are declared, as a worker can import it; and whether the program itself may be imported."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

from tunebook.tuner._isolation._messages import Source

#: What `ops.load_file` calls the modules that it makes of files.
_FROM_FILE = "tunebook_user_"


def source_of(module: str) -> Source | str:
    """How a worker imports a module of this process, or why it cannot, with the remedy."""
    if module in ("__main__", "__mp_main__"):
        return _program()
    if not module:
        return "it is not declared in a module; declare it in one"
    if module.startswith(_FROM_FILE):
        file = getattr(sys.modules.get(module), "__file__", None)
        if isinstance(file, str):
            return Source(name=module, path=file)
    return Source(name=module)


def _program() -> Source | str:
    """The program that was started: only where importing it again does not run it again."""
    main: Any = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    spec = getattr(main, "__spec__", None)
    if not isinstance(file, str) or not Path(file).is_file():
        return "it is declared in an interactive session; declare it in a file that is imported"
    if not guarded(Path(file)):
        return (
            f"it is declared in {os.path.basename(file)}, the program itself, which cannot be imported without running it; "
            'put what it runs under `if __name__ == "__main__":`, or declare it in a file that is imported'
        )
    if spec is not None and spec.name:
        return Source(name=spec.name, main=True)
    return Source(name="__main__", path=os.path.abspath(file), main=True)


def guarded(file: Path) -> bool:
    """Whether a program keeps what it runs under ``if __name__ == "__main__":``."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.If) and _asks_for_main(node.test) for node in tree.body)


def _asks_for_main(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare) or len(test.comparators) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = (test.left, test.comparators[0])
    names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
    return names and any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)
