"""The version of a runner: which edits change it, and what does not."""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import OpError
from tunebook.ops import load_file, runner_version

SRC = Path(__file__).parents[2] / "src"
KERNEL = "def kernel(x):\n    return x\n"
_serial = itertools.count()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    modules, path = dict(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        if name.startswith(("tunebook_user_", "proj")) or name in ("helper", "deeper", "lib"):
            del sys.modules[name]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[dict[str, str]], Callable[..., Any]]:
    """Write files, load ``kernels.py`` among them, and give its function ``kernel``."""

    def make(files: dict[str, str], at: str = "one") -> Callable[..., Any]:
        write(tmp_path / at, files)
        function: Callable[..., Any] = load_file(tmp_path / at / "kernels.py").kernel
        return function

    return make


def package(tmp_path: Path, files: dict[str, str], module: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    name = f"proj{next(_serial)}"
    write(tmp_path, {f"{name}/{path}": text.replace("PKG", name) for path, text in files.items()})
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / name, importlib.import_module(f"{name}.{module}").kernel


def test_it_is_twelve_hexadecimal_digits_and_stays(script) -> None:
    kernel = script({"kernels.py": KERNEL})
    version = runner_version(kernel)
    assert len(version) == 12
    assert set(version) <= set("0123456789abcdef")
    assert runner_version(kernel) == version


def test_a_declared_version_is_used_whatever_the_code_is(script) -> None:
    assert runner_version(script({"kernels.py": KERNEL}), declared="2.1", sources=["absent.c"]) == "v:2.1"
    with pytest.raises(OpError, match="empty"):
        runner_version(len, declared=" ")


def test_an_edit_of_the_module_counts_and_a_touch_does_not(script, tmp_path) -> None:
    kernel = script({"kernels.py": KERNEL})
    before = runner_version(kernel)
    os.utime(tmp_path / "one/kernels.py", (1, 1))
    assert runner_version(kernel) == before
    write(tmp_path / "one", {"kernels.py": KERNEL.replace("return x", "return y")})  # of the same length
    assert runner_version(kernel) != before


def test_an_edit_within_the_clocks_grain_counts(script, tmp_path) -> None:
    kernel = script({"kernels.py": KERNEL})
    now = time.time_ns()
    versions = set()
    for text in (KERNEL, KERNEL.replace("return x", "return y")):
        write(tmp_path / "one", {"kernels.py": text})
        os.utime(tmp_path / "one/kernels.py", ns=(now, now))
        versions.add(runner_version(kernel))
    assert len(versions) == 2


def test_going_back_to_an_earlier_content_gives_the_earlier_version(script, tmp_path) -> None:
    kernel = script({"kernels.py": KERNEL})
    before = runner_version(kernel)
    write(tmp_path / "one", {"kernels.py": KERNEL * 2})
    assert runner_version(kernel) != before
    write(tmp_path / "one", {"kernels.py": KERNEL})
    assert runner_version(kernel) == before


def test_it_does_not_depend_on_the_place(script, tmp_path) -> None:
    files = {"kernels.py": f"import helper\n{KERNEL}", "helper.py": "A = 1\n", "k.c": "int k;"}
    one = runner_version(script(files), sources=["k.c"])
    del sys.modules["helper"]
    assert runner_version(script(files, at="deep/down/two"), sources=["k.c"]) == one
    del sys.modules["helper"]
    absolute = [tmp_path / "three/k.c"]
    assert runner_version(script(files, at="three"), sources=absolute) == one


@pytest.mark.parametrize(
    "statement",
    [
        "import helper",
        "from helper import A",
        "from helper import *",
        "import lib.inner",
        "from lib import inner",
        "from lib.inner import B",
        "def late():\n    import helper",
        "import importlib\ndef late():\n    return importlib.import_module('helper')",
    ],
)
def test_an_edit_of_a_local_import_counts(script, tmp_path, statement: str) -> None:
    files = {"helper.py": "A = 1\n", "lib/__init__.py": "", "lib/inner.py": "B = 1\n", "unused.py": "C = 1\n"}
    kernel = script({**files, "kernels.py": f"{statement}\n{KERNEL}"})
    used = "helper.py" if "helper" in statement else "lib/inner.py"
    before = runner_version(kernel)
    write(tmp_path / "one", {"unused.py": "C = 2\n"})
    assert runner_version(kernel) == before
    write(tmp_path / "one", {used: "A = B = 2\n"})
    assert runner_version(kernel) != before


def test_imports_are_followed_in_turn_and_in_circles(script, tmp_path) -> None:
    files = {
        "kernels.py": f"import helper\n{KERNEL}",
        "helper.py": "import deeper\n",
        "deeper.py": "def late():\n    import helper, kernels\n",
    }
    kernel = script(files)
    before = runner_version(kernel)
    write(tmp_path / "one", {"deeper.py": files["deeper.py"] + "B = 2\n"})
    assert runner_version(kernel) != before


def test_a_broken_helper_that_is_not_run_still_counts(script, tmp_path) -> None:
    kernel = script({"kernels.py": f"def late():\n    import helper\n{KERNEL}", "helper.py": "def (:\n"})
    before = runner_version(kernel)
    write(tmp_path / "one", {"helper.py": "def )\n"})
    assert runner_version(kernel) != before


def test_relative_imports_in_a_package(tmp_path, monkeypatch) -> None:
    files = {
        "__init__.py": "from PKG.ops import kernel_a\n",
        "ops/__init__.py": "",
        "ops/kernel_a.py": f"from . import near\nfrom ..util import far\nimport PKG.plain\n{KERNEL}",
        "ops/near.py": "A = 1\n",
        "ops/kernel_b.py": "A = 1\n",
        "util.py": "far = 1\n",
        "plain.py": "far = 1\n",
    }
    root, kernel = package(tmp_path, files, "ops.kernel_a", monkeypatch)
    versions = [runner_version(kernel)]
    for name in ("ops/near.py", "util.py", "plain.py"):
        write(root, {name: "A = far = 3\n"})
        versions.append(runner_version(kernel))
    assert len(set(versions)) == 4
    write(root, {"ops/kernel_b.py": "A = 2\n"})  # a neighbour that is not imported
    assert runner_version(kernel) == versions[-1]


def test_the_package_around_a_kernel_counts_only_where_something_is_taken_from_it(tmp_path, monkeypatch) -> None:
    for statement, counts in {
        "from .b import B": False,
        "from . import b": False,
        "from PKG.b import B": False,
        "from PKG import b": False,
        "from . import SIZE": True,
        "from PKG import b, SIZE": True,
        "from PKG import *": True,
        "import PKG": True,
    }.items():
        files = {"__init__.py": "SIZE = 1\n", "a.py": f"{statement}\n{KERNEL}", "b.py": "B = 1\n"}
        root, kernel = package(tmp_path, files, "a", monkeypatch)
        before = runner_version(kernel)
        write(root, {"__init__.py": "SIZE = 2\n"})
        assert (runner_version(kernel) != before) == counts, statement


def test_a_file_of_a_package_that_is_loaded_alone_finds_its_package(script, tmp_path) -> None:
    files = {f"lib/{name}": "" for name in ("__init__.py", "ops/__init__.py", "util.py")}
    write(tmp_path, files)
    kernel = script({"kernels.py": f"def late():\n    import lib.util\n{KERNEL}"}, at="lib/ops")
    before = runner_version(kernel)
    write(tmp_path, {"lib/util.py": "far = 2\n"})
    assert runner_version(kernel) != before


def test_a_namespace_package_finds_what_its_name_says(tmp_path, monkeypatch) -> None:
    files = {"ops/a.py": f"from PKG.util import far\n{KERNEL}", "util.py": "far = 1\n"}
    root, kernel = package(tmp_path, files, "ops.a", monkeypatch)
    before = runner_version(kernel)
    write(root, {"util.py": "far = 2\n"})
    assert runner_version(kernel) != before


def test_an_edit_of_a_named_source_counts_and_a_missing_one_is_named(script, tmp_path) -> None:
    kernel = script({"kernels.py": KERNEL, "csrc/k.c": "int k;"})
    plain, before = runner_version(kernel), runner_version(kernel, sources=["csrc/k.c"])
    assert plain != before
    write(tmp_path / "one", {"csrc/k.c": "int j;"})
    assert runner_version(kernel, sources=["csrc/k.c"]) != before
    with pytest.raises(OpError, match=r"absent\.c"):
        runner_version(kernel, sources=["absent.c"])


def test_a_shared_object_that_is_loaded_counts(script, tmp_path) -> None:
    library = tmp_path / "libfast.so"
    shutil.copy(msgspec._core.__file__, library)
    text = f"import ctypes\nLIBRARY = ctypes.CDLL({str(library)!r})\nSYSTEM = ctypes.CDLL(None)\n"
    for at, files in {
        "own": {"kernels.py": text + KERNEL},
        "import": {"kernels.py": f"import helper\n{KERNEL}", "helper.py": text},
    }.items():
        kernel = script(files, at=at)
        before = runner_version(kernel)
        library.rename(tmp_path / f"moved-{at}.so")
        (tmp_path / "new.so").write_bytes((tmp_path / f"moved-{at}.so").read_bytes() + b"\0")
        (tmp_path / "new.so").rename(library)
        assert runner_version(kernel) != before
    assert ctypes.CDLL(None) is not None


def test_an_extension_module_among_the_imports_counts(script, tmp_path) -> None:
    kernel = script({"kernels.py": f"def late():\n    import fast\n{KERNEL}"})
    extension = tmp_path / "one" / f"fast{EXTENSION_SUFFIXES[0]}"
    versions = [runner_version(kernel)]
    for content in (b"\x7fELF 1", b"\x7fELF 2"):
        extension.write_bytes(content)
        versions.append(runner_version(kernel))
    assert len(set(versions)) == 3


def test_what_is_installed_counts_by_the_version_of_its_distribution(script, monkeypatch) -> None:
    kernel = script({"kernels.py": f"import msgspec, json\n{KERNEL}"})
    before = runner_version(kernel, libraries=["msgspec"])
    assert before != runner_version(kernel)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert runner_version(kernel, libraries=["msgspec"]) != before
    assert runner_version(kernel, libraries=["msgspec"]) == runner_version(kernel, libraries=["msgspec"])


def test_a_library_that_is_absent_is_no_error_and_counts(script) -> None:
    kernel = script({"kernels.py": KERNEL})
    assert runner_version(kernel, libraries=["no-such-distribution-here"]) != runner_version(kernel)


def test_decorated_and_partial_functions_are_looked_through(script, tmp_path) -> None:
    kernel = script({"kernels.py": KERNEL})

    @functools.wraps(kernel)
    def wrapper(x: object) -> object:
        return kernel(x)

    for function in (wrapper, functools.partial(kernel, 1), functools.partial(wrapper)):
        assert runner_version(function) == runner_version(kernel)


def test_an_object_that_can_be_called_counts_by_its_class(script, tmp_path) -> None:
    text = "class Kernel:\n    def __call__(self, x):\n        return x\nkernel = Kernel()\n"
    kernel = script({"kernels.py": text})
    before = runner_version(kernel)
    write(tmp_path / "one", {"kernels.py": text + "# edited\n"})
    assert runner_version(kernel) != before


def test_builtin_and_installed_functions_have_a_version() -> None:
    assert runner_version(len) != runner_version(sum)
    assert runner_version(msgspec.json.encode) == runner_version(msgspec.json.encode)
    assert runner_version(pytest.importorskip) == runner_version(pytest.importorskip)


def test_an_installed_package_counts_by_what_its_installer_noted(tmp_path, monkeypatch) -> None:
    versions = []
    for place, noted in (("a", "sha256=one"), ("b", "sha256=two"), ("c", "sha256=one")):
        site, name = tmp_path / place / "site-packages", "projinstalled"
        record = f"{name}/kernels.py,{noted},9\n{name}/__pycache__/kernels.cpython-311.pyc,,\nother/a.py,{place},9\n"
        write(site, {f"{name}/__init__.py": "", f"{name}/kernels.py": KERNEL, f"{name}-1.dist-info/RECORD": record})
        with monkeypatch.context() as patch:
            patch.syspath_prepend(site)
            versions.append(runner_version(importlib.import_module(f"{name}.kernels").kernel))
        for module in (name, f"{name}.kernels"):
            del sys.modules[module]
    assert versions[0] == versions[2] != versions[1]


def test_two_operators_of_one_class_differ() -> None:
    class Operator:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __call__(self, x: object) -> object:
            return x

    assert runner_version(Operator("linear")) != runner_version(Operator("matmul"))


def compiled(source: str) -> Any:
    namespace: dict[str, Any] = {"__name__": "no_such_module"}
    exec(compile(source, "<typed>", "exec"), namespace)  # noqa: S102 (what a prompt does)
    return namespace["kernel"]


@pytest.mark.parametrize(
    "edited",
    [
        "def kernel(x, n=3): return x + 2",
        "def kernel(x, n=4): return x + 1",
        "def kernel(x, n=3): return x * 1",
        "def kernel(x, n=3): return n + 1",
        "def kernel(x, n=3): return (lambda: x + 1)()",
        "def helper(): return 2\ndef kernel(x, n=3): return x + helper()",
    ],
)
def test_without_a_file_the_bytecode_counts(edited: str) -> None:
    plain = "def kernel(x, n=3): return x + 1"
    assert runner_version(compiled(plain)) == runner_version(compiled("\n\n" + plain))
    assert runner_version(compiled(plain)) != runner_version(compiled(edited))


def test_without_a_file_the_functions_it_calls_count() -> None:
    text = "def helper(x): return kernel if x else {}\ndef kernel(x): return helper(x)"
    assert runner_version(compiled(text.format(1))) == runner_version(compiled(text.format(1)))
    assert runner_version(compiled(text.format(1))) != runner_version(compiled(text.format(2)))


def test_the_bytecode_digest_is_the_same_in_every_process() -> None:
    program = (
        "import sys; from tunebook.ops import runner_version\n"
        "def kernel(x):\n    return x in {'a', 'b', 'c', 'd'} or (lambda y: y + 1)(x)\n"
        "print(runner_version(kernel), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1
    assert seen.pop().split()[1] == "False"


@given(first=st.binary(max_size=40), second=st.binary(max_size=40))
def test_two_contents_have_one_version_exactly_when_they_are_equal(tmp_path_factory, first, second) -> None:
    folder = tmp_path_factory.mktemp("source")
    versions = []
    for content in (first, second):
        (folder / "k.c").write_bytes(content)
        versions.append(runner_version(len, sources=[folder / "k.c"]))
    assert (versions[0] == versions[1]) == (first == second)
