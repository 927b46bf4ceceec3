"""A file given with --with: what its imports find, and how its mistakes are told in one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunebook.errors import UserCodeError
from tunebook.ops import load_file


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("tunebook_user_") or name in ("usercode_helper", "usercode_late", "kernels"):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def failure(path: Path | str) -> UserCodeError:
    before = list(sys.path), {name for name in sys.modules if name.startswith("tunebook_user_")}
    with pytest.raises(UserCodeError) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    after = list(sys.path), {name for name in sys.modules if name.startswith("tunebook_user_")}
    assert after == before
    return caught.value


def test_the_same_file_is_the_same_module(tmp_path, monkeypatch) -> None:
    path = write(tmp_path, "my-kernels.py", "VALUE = object()\n")
    module = load_file(path)
    assert load_file(str(path)) is module
    (tmp_path / "link.py").symlink_to(path)
    assert load_file(tmp_path / "link.py") is module
    monkeypatch.chdir(tmp_path)
    assert load_file("my-kernels.py") is module
    assert sys.modules[module.__name__] is module


def test_two_files_of_one_name_are_two_modules(tmp_path) -> None:
    one = load_file(write(tmp_path / "one", "kernels.py", "VALUE = 1\n"))
    two = load_file(write(tmp_path / "two", "kernels.py", "VALUE = 2\n"))
    assert (one.VALUE, two.VALUE) == (1, 2)


def test_a_file_that_is_imported_already_is_not_run_again(tmp_path, monkeypatch) -> None:
    path = write(tmp_path, "my_kernels.py", "VALUE = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_kernels  # type: ignore[import-not-found]

    assert load_file(path) is my_kernels


def test_it_imports_what_lies_beside_it_now_and_later(tmp_path) -> None:
    write(tmp_path, "usercode_helper.py", "VALUE = 7\n")
    write(tmp_path, "usercode_late.py", "VALUE = 8\n")
    text = "from usercode_helper import VALUE\ndef late():\n    import usercode_late\n    return usercode_late.VALUE\n"
    before = list(sys.path)
    module = load_file(write(tmp_path, "mine.py", text))
    assert module.VALUE == 7
    assert module.late() == 8
    assert sys.path[: len(before)] == before  # it hides nothing of others


def test_dataclasses_and_annotations_work_in_it(tmp_path) -> None:
    text = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass A:\n    x: int = 3\nVALUE = A()\n"
    )
    assert load_file(write(tmp_path, "mine.py", text)).VALUE.x == 3


def test_an_edit_between_two_processes_is_not_hidden_by_a_compiled_file(tmp_path) -> None:
    path = write(tmp_path, "mine.py", "VALUE = 1\n")
    load_file(path)
    assert not (tmp_path / "__pycache__").exists()


def test_a_missing_file_and_a_wrong_kind_are_named(tmp_path) -> None:
    assert str(tmp_path / "absent.py") in str(failure(tmp_path / "absent.py"))
    assert "Python file" in str(failure(tmp_path))
    assert "Python file" in str(failure(write(tmp_path, "kernel.c", "int k;")))


def test_a_syntax_error_gives_its_line(tmp_path) -> None:
    error = failure(write(tmp_path, "mine.py", "a = 1\n\ndef f(:\n"))
    assert str(error).startswith(f"{tmp_path / 'mine.py'}:3: SyntaxError: ")
    assert isinstance(error.__cause__, SyntaxError)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("from . import other", "ImportError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError", "ValueError"),
        (r"raise ValueError('two\n  lines')", "ValueError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit: the file exits (3) while it is imported"),
        ("exit_code = None; raise SystemExit", "SystemExit: "),
    ],
)
def test_an_exception_gives_line_type_and_message(tmp_path, statement: str, told: str) -> None:
    error = failure(write(tmp_path, "mine.py", f"\n\n{statement}\n"))
    assert f"mine.py:3: {told}" in str(error)
    assert error.__cause__ is not None


def test_an_exception_in_a_local_import_gives_both_places(tmp_path) -> None:
    write(tmp_path, "usercode_helper.py", "\n\n\n1 / 0\n")
    error = failure(write(tmp_path, "mine.py", "\nimport usercode_helper\n"))
    assert "mine.py:2: ZeroDivisionError" in str(error)
    assert "(usercode_helper.py:4)" in str(error)


def test_a_syntax_error_in_a_local_import_gives_both_places(tmp_path) -> None:
    write(tmp_path, "usercode_helper.py", "\ndef f(:\n")
    error = failure(write(tmp_path, "mine.py", "\nimport usercode_helper\n"))
    assert "mine.py:2: SyntaxError" in str(error)
    assert "(usercode_helper.py:2)" in str(error)


def test_a_file_that_failed_can_be_mended_and_loaded(tmp_path) -> None:
    path = write(tmp_path, "mine.py", "1 / 0\n")
    failure(path)
    write(tmp_path, "mine.py", "VALUE = 5\n")
    assert load_file(path).VALUE == 5


def test_an_interrupt_passes_through(tmp_path) -> None:
    before = list(sys.path)
    path = write(tmp_path, "mine.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_file(path)
    assert sys.path == before
    assert not [name for name in sys.modules if name.startswith("tunebook_user_mine")]


def test_a_helper_hidden_by_another_of_its_name_is_told(tmp_path, caplog) -> None:
    text = "from usercode_helper import VALUE\n"
    with caplog.at_level(logging.WARNING, "tunebook"):
        for folder, value in (("one", 1), ("two", 2)):
            write(tmp_path / folder, "usercode_helper.py", f"VALUE = {value}\n")
            load_file(write(tmp_path / folder, "mine.py", text))
    assert [record for record in caplog.messages if "usercode_helper.py" in record and "rename" in record]
    assert len(caplog.messages) == 1
