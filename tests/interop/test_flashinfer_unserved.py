"""What lies in FlashInfer's two stores and is never served: it is named, and in nobody's way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunebook.errors import StoreError
from tunebook.interop import ForeignBook, by_name, merge, open_any, write


def read(path: Path) -> ForeignBook:
    book = open_any(path)
    assert book is not None
    return book


def test_entries_that_flashinfer_passes_over_are_named_kept_and_in_nobodys_way(fixtures: Path, tmp_path: Path) -> None:
    """Both versions load a file without its cuDNN tactics that are numbers."""
    raw = json.loads((fixtures / "flashinfer-v1" / "first.json").read_text())
    key = "('mm_fp4', 'CudnnFp4GemmRunner', ((1, 2), (2, 3)), ())"
    other = key.replace("CudnnFp4GemmRunner", "CutlassFp4GemmRunner")
    (tmp_path / "rank_tp0_pp0_dp0.json").write_text(json.dumps({**raw, key: ["CudnnFp4GemmRunner", 3]}, indent=2))
    book = read(tmp_path / "rank_tp0_pp0_dp0.json")
    assert len(book.entries) == 6
    (miss,) = book.misses
    assert "key ('mm_fp4', 'CudnnFp4GemmRunner'" in str(miss)
    assert "FlashInfer passes over cuDNN's tactics that are numbers" in str(miss)
    assert read(tmp_path).misses == book.misses, "of the tree as well"
    write(by_name("flashinfer-v1"), book, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == book.path.read_bytes()
    write(by_name("flashinfer-v2"), book, tmp_path / "store")
    assert len(read(tmp_path / "store").entries) == 6
    (tmp_path / "b.json").write_text(json.dumps({**raw, other: ["CutlassFp4GemmRunner", 1]}))
    merged = merge([book, read(tmp_path / "b.json")]).book
    assert merged.entries["('mm_fp4', ((1, 2), (2, 3)), ())"].choice == "CutlassFp4GemmRunner[1]"
    (tmp_path / "c.json").write_text(json.dumps({**raw, key: ["CudnnFp4GemmRunner", -1]}))
    assert len(read(tmp_path / "c.json").entries) == 7, "the fallback is served"


def test_entries_without_a_manifest_are_named_and_the_rest_is_read(fixtures: Path, tmp_path: Path) -> None:
    """As where copying a store was broken off."""
    shutil.copytree(fixtures / "flashinfer-v2" / "store", tmp_path / "store")
    (whole,) = (tmp_path / "store" / "v2").iterdir()
    part = whole.with_name("0123456789abcdef")
    shutil.copytree(whole / "entries", part / "entries")
    book = read(tmp_path / "store")
    assert len(book.entries) == 6
    (miss,) = book.misses
    assert str(miss).startswith(f"{part}: environment: there is no manifest.json")
    shutil.rmtree(whole)
    for path in (tmp_path / "store", part.parent, part):
        with pytest.raises(StoreError) as caught:
            open_any(path)
        assert str(caught.value).startswith(f"{part}: there is no manifest.json")
