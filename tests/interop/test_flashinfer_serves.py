"""FlashInfer itself loads and serves what tunebook writes: the real package, tuning and looking up on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.interop import ForeignBook, by_name, diff, merge, open_any, write

Ask = Callable[..., dict[str, Any]]


def read(path: Path) -> ForeignBook:
    book = open_any(path)
    assert book is not None
    return book


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def tuned(flashinfer: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file and a store that FlashInfer wrote here just now, and the winners of the file."""
    folder = tmp_path_factory.mktemp("flashinfer")
    winners = flashinfer(tune_v1=folder / "v1.json", seed=7)
    flashinfer(tune_v2=folder / "v2", seed=7)
    return folder, winners


def test_flashinfer_serves_a_v1_file_that_was_read_and_written(
    flashinfer: Ask, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, winners = tuned
    write(by_name("flashinfer-v1"), read(folder / "v1.json"), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (folder / "v1.json").read_bytes()
    assert flashinfer(serve_v1=tmp_path / "again.json") == {"loaded": True, **winners}
    assert None not in winners.values()


def test_flashinfer_serves_a_v2_store_that_was_read_and_written(
    flashinfer: Ask, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = tuned
    write(by_name("flashinfer-v2"), read(folder / "v2"), tmp_path / "again")
    served = flashinfer(serve_v2=tmp_path / "again")
    assert served == flashinfer(serve_v2=folder / "v2")
    assert None not in served.values()


def test_flashinfer_serves_the_same_from_either_form_of_a_book(
    flashinfer: Ask, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, winners = tuned
    write(by_name("flashinfer-v2"), read(folder / "v1.json"), tmp_path / "store")
    assert flashinfer(serve_v2=tmp_path / "store") == {"preloaded": 6, **winners}
    write(by_name("flashinfer-v1"), read(tmp_path / "store"), tmp_path / "back.json")
    assert flashinfer(serve_v1=tmp_path / "back.json") == {"loaded": True, **winners}
    assert document(tmp_path / "back.json") == document(folder / "v1.json")


def test_flashinfer_serves_a_merged_book_and_a_rank_of_sglangs_tree(
    flashinfer: Ask, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, winners = tuned
    others = flashinfer(tune_v1=tmp_path / "other.json", seed=8)
    assert others != winners
    book = merge([read(folder / "v1.json"), read(tmp_path / "other.json")]).book
    write(by_name("sglang"), book, tmp_path / "tree")
    (rank,) = (tmp_path / "tree").iterdir()
    assert rank.name == "rank_tp0_pp0_dp0.json"
    assert flashinfer(serve_v1=rank) == {"loaded": True, **winners}


def test_flashinfer_refuses_what_tunebook_names_as_another_environment(
    flashinfer: Ask, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, winners = tuned
    raw = document(folder / "v1.json")
    raw["_metadata"]["gpu"] = "NVIDIA H200"
    (tmp_path / "other.json").write_text(json.dumps(raw))
    served = flashinfer(serve_v1=tmp_path / "other.json")
    assert served == {"loaded": False, **dict.fromkeys(winners)}
    facts = diff(read(folder / "v1.json"), read(tmp_path / "other.json")).facts
    assert [(fact.name, fact.after) for fact in facts] == [("gpu", "NVIDIA H200")]
