"""What products keep in FlashInfer's v1 file beside its winners (``_records``), as SGLang does for MegaMoE: winners as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook.errors import StoreError
from tunebook.interop import ForeignBook, by_name, diff, history, merge, open_any, write

#: As SGLang 0.5.23 has it (srt/layers/moe/flashinfer_megamoe_autotune.py).
NAMESPACE = "sglang_flashinfer_megamoe"


def payload(tile: int) -> dict[str, Any]:
    return {"version": 1, "entries": [{"knobs": {"tile": tile, "stages": 3}}]}


@pytest.fixture
def make(fixtures: Path, tmp_path: Path) -> Any:
    """``make("a.json", {"geometry:128": payload(1)})``: the first fixture with these records."""

    def made(name: str, records: Any) -> ForeignBook:
        raw = json.loads((fixtures / "flashinfer-v1" / "first.json").read_text())
        path = tmp_path / name
        path.write_text(json.dumps({"_metadata": raw.pop("_metadata"), "_records": {NAMESPACE: records}, **raw}))
        book = open_any(path)
        assert book is not None
        return book

    return made


def test_a_products_records_are_entries(make: Any) -> None:
    book = make("a.json", {"geometry:128": payload(7)})
    assert len(book.entries) == 7
    entry = book.entries[f"{NAMESPACE}: geometry:128"]
    assert (entry.op, entry.problem) == (NAMESPACE, "geometry:128")
    assert entry.choice == "entries=[{knobs={stages=3,tile=7}}],version=1"


def test_a_record_that_differs_is_a_difference(make: Any) -> None:
    one = make("a.json", {"geometry:128": payload(7), "geometry:64": payload(1)})
    other = make("b.json", {"geometry:128": payload(8)})
    found = diff(one, other)
    assert [flip.key for flip in found.flipped] == [f"{NAMESPACE}: geometry:128"]
    assert found.only_before == (f"{NAMESPACE}: geometry:64",)
    assert found.different


def test_merging_takes_the_first_ones_record_and_keeps_what_only_the_second_has(make: Any, tmp_path: Path) -> None:
    one = make("a.json", {"geometry:128": payload(7)})
    other = make("b.json", {"geometry:128": payload(8), "geometry:64": payload(1)})
    found = merge([one, other])
    assert found.added == (1,)
    assert [flip.key for flip in found.conflicts] == [f"{NAMESPACE}: geometry:128"]
    write(by_name("flashinfer-v1"), found.book, tmp_path / "merged.json")
    assert json.loads((tmp_path / "merged.json").read_text())["_records"] == {
        NAMESPACE: {"geometry:128": payload(7), "geometry:64": payload(1)}
    }


def test_records_of_another_form_are_one_entry_and_the_first_ones_count(make: Any, tmp_path: Path) -> None:
    one, other = make("a.json", [1, 2]), make("b.json", {"x": 1})
    assert one.entries[NAMESPACE].choice == "[1,2]"
    write(by_name("flashinfer-v1"), merge([one, other]).book, tmp_path / "merged.json")
    assert json.loads((tmp_path / "merged.json").read_text())["_records"] == {NAMESPACE: [1, 2]}


def test_ranks_that_are_bound_to_a_device_are_ranks_of_one_model(make: Any, tmp_path: Path) -> None:
    """SGLang puts the device's UUID into the name where MegaMoE's records need one writer a file."""
    names = [f"rank_tp{rank}_pp0_dp0_gpu{rank}fbb6a1c-0000-1111-2222-333344445555" for rank in range(2)]
    for tile, name in enumerate(names):
        make(f"{name}.json", {"geometry:128": payload(tile)})
    tree = open_any(tmp_path)
    assert tree is not None
    assert tree.format == "sglang"
    assert tree.facts["ranks"] == "2"
    assert tree.facts["problems for which ranks chose differently"] == "1"
    assert f"{names[0]}: {NAMESPACE}: geometry:128" in tree.entries
    assert {entry.name for entry in history([tmp_path])} == {f"{tmp_path.name}/{name}" for name in names}


def test_too_many_records_are_refused(make: Any) -> None:
    with pytest.raises(StoreError, match="200009 entries are more than the 200000 that are read"):
        make("a.json", dict.fromkeys(map(str, range(200_000)), 0))
