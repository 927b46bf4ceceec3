"""Helion's local cache: the configuration and the key it was found for, written back byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURE = next((Path(__file__).parent / "fixtures" / "helion").glob("*.best_config"))
FORMAT = interop.by_name("helion")


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "helion"
    return book


def changed(path: Path, **members: Any) -> Path:
    path.write_text(json.dumps({**json.loads(FIXTURE.read_text()), **members}))
    return path


def test_the_configuration_is_the_choice_and_the_key_the_problem() -> None:
    book = book_of(FIXTURE)
    fields = json.loads(FIXTURE.read_text())["key"]["fields"]

    (entry,) = book.entries.values()
    assert entry.op == f"kernel {fields['kernel_source_hash'][:16]}"
    assert entry.problem == f"specialization_key={fields['specialization_key']}"
    assert entry.key == f"{entry.op}|{entry.problem}"
    assert entry.choice == (
        "block_sizes=[64,64,32],indexing=pointer,l2_groupings=[4],loop_orders=[[1,0]],num_stages=3,num_warps=8,"
        "pid_type=flat,range_multi_buffers=[none,false]"
    )
    assert entry.seconds is None
    assert book.facts["cache"] == "LooseAutotuneCacheKey"
    assert book.facts["hardware"] == "NVIDIA H200"
    assert book.facts["backend"] == "triton"


def test_it_is_written_byte_for_byte(tmp_path: Path) -> None:
    FORMAT.write(book_of(FIXTURE), tmp_path / FIXTURE.name)

    assert (tmp_path / FIXTURE.name).read_bytes() == FIXTURE.read_bytes()


def test_another_configuration_for_the_same_problem_is_a_flip(tmp_path: Path) -> None:
    other = changed(tmp_path / "other.best_config", config=json.dumps({"block_sizes": [16], "num_warps": 4}))

    found = interop.diff(book_of(FIXTURE), book_of(other))

    assert len(found.flipped) == 1


def test_it_is_told_by_its_key_too(tmp_path: Path) -> None:
    path = tmp_path / "renamed.json"
    path.write_bytes(FIXTURE.read_bytes())

    assert book_of(path).entries == book_of(FIXTURE).entries


def test_two_files_do_not_become_one() -> None:
    with pytest.raises(UsageError, match="books of helion are not merged"):
        interop.merge([book_of(FIXTURE), book_of(FIXTURE)])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"config": {"num_warps": 4}}, "config has to be text, and is an object"),
        ({"config": "[1]"}, "config: it is no object"),
        ({"config": '{"num_warps": 4'}, "config: line 1, column"),
        ({"config": '{"num_warps": 4, "num_warps": 8}'}, '"num_warps" occurs twice'),
        ({"config": '{"num_warps": NaN}'}, "config: line 1, column"),
        ({"key": "abc"}, "key has to be an object, and is text"),
        ({"key": {"type": "LooseAutotuneCacheKey"}}, "key: fields has to be an object, and is missing"),
        ({"key": {"fields": {}}}, "key fields: kernel_source_hash has to be text, and is missing"),
        ({"key": {"fields": {"kernel_source_hash": 5}}}, "kernel_source_hash has to be text, and is a whole number"),
    ],
)
def test_a_malformed_member_is_refused_by_its_name(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    path = changed(tmp_path / "bad.best_config", **members)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.best_config"
    path.write_text(FIXTURE.read_text()[:-30])

    with pytest.raises(StoreError, match=r"bad\.best_config: line \d+, column \d+: not JSON"):
        interop.open_any(path)
