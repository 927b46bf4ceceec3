"""No file is turned into code: calls that could do that are found in the source, each one that is allowed is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunebook

SOURCE = Path(tunebook.__file__).parent
#: Modules that run what they read.
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "runpy",
    "code",
    "codeop",
}
#: Calls that do: by their last name, wherever it comes from, and by name with what they belong to.
CALLS = {
    "eval",
    "exec",
    "execfile",
    "__import__",
    "import_module",
    "spec_from_file_location",
    "read_pickle",
    "literal_eval",
}
LOADS = {
    "torch.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.hub.load",
    "torch.export.load",
    "torch.ops.load_library",
}
#: Keywords that switch a check off: ``np.load(…, allow_pickle=True)``.
KEYWORDS = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}
#: Where such a call is right, how often, and why.
ALLOWED = {
    ("__init__.py", "import_module"): 1,  # names from a table in the same file
    ("dispatch/_caller.py", "exec"): 1,  # source that is written there, of checked identifiers
    ("engine/_modules/_forward.py", "exec"): 2,  # the same
    ("integrations/sglang/_plugin.py", "import_module"): 1,  # a name that stands in the same file
    ("kernels/_native/__init__.py", "import_module"): 1,  # a name from a table in the same file
    ("ops/_usercode.py", "spec_from_file_location"): 1,  # a file that the user names with --with: code by its purpose
    # A worker process runs what its parent has loaded, told through their own socket.
    ("measure/_isolate/_supervisor.py", "import_module"): 1,
    ("tuner/_isolation/_serve.py", "import_module"): 1,
    ("tuner/_isolation/_serve.py", "runpy"): 1,
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def found(tree: ast.AST) -> Iterator[str]:
    """What in a module could turn data into code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in MODULES:
                yield module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & LOADS
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.rpartition(".")[2]
            fixed = last == "import_module" and isinstance(next(iter(node.args), None), ast.Constant)
            if last in CALLS and not fixed and not (last == "eval" and "." in name):  # a model's own eval() is no such
                yield last
            elif any(name == known or name.endswith(f".{known}") for known in LOADS):
                yield name
            for word in node.keywords:
                if word.arg in KEYWORDS and not (
                    isinstance(word.value, ast.Constant) and word.value.value is KEYWORDS[word.arg]
                ):
                    yield f"{name}({word.arg}=…)"


def test_no_call_turns_data_into_code() -> None:
    counts: dict[tuple[str, str], int] = {}
    files = sorted(SOURCE.rglob("*.py"))
    for file in files:
        for what in found(ast.parse(file.read_bytes())):
            place = (file.relative_to(SOURCE).as_posix(), what)
            counts[place] = counts.get(place, 0) + 1
    assert len(files) > 100
    assert {place: count for place, count in counts.items() if count > ALLOWED.get(place, 0)} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml", "import marshal as m", "from joblib import load",
        "eval(x)", "exec(x)", "builtins.exec(x)", "__import__(x)", "importlib.import_module(x)", "import_module(x)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=True)", "from torch import load",
        "np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=flag)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "pd.read_pickle(x)", "runpy.run_path(x)\nimport runpy", "torch.jit.load(x)", "torch.ops.load_library(x)",
    ],
)  # fmt: skip
def test_such_a_call_is_found(source: str) -> None:
    assert list(found(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "import_module('pandas')", "np.load(x)", "json.loads(x)", "np.load(x, allow_pickle=False)"],
)
def test_other_calls_are_not(source: str) -> None:
    assert not list(found(ast.parse(source)))
