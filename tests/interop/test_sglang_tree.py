"""SGLang's tree of FlashInfer's books: ranks, single starts, their history, and where ranks disagree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunebook.errors import UsageError
from tunebook.interop import ForeignBook, by_name, diff, history, open_any, write

GEMM = "('demo::gemm', ((16, 64), (64, 32)), (torch.bfloat16, True))"


def read(path: Path) -> ForeignBook:
    book = open_any(path)
    assert book is not None
    return book


def test_a_tree_has_its_ranks_its_runs_and_where_ranks_disagree(fixtures: Path) -> None:
    book = read(fixtures / "sglang")
    assert book.format == "sglang"
    assert (book.facts["ranks"], book.facts["runs"]) == ("2", "2")
    folder = fixtures / "flashinfer-v1"
    flipped = len(diff(read(folder / "first.json"), read(folder / "second.json")).flipped)
    assert book.facts["problems for which ranks chose differently"] == str(flipped)
    assert len(book.entries) == 12
    before = "autotune/0.7.2/sm90/0123456789abcdef/rank_tp1_pp0_dp0"
    assert book.entries[f"{before}: {GEMM}"].problem == f"{before}: 16x64 64x32, extras (torch.bfloat16, True)"


def test_any_directory_of_the_tree_can_be_read_and_two_files_of_runs_compared(fixtures: Path) -> None:
    model = next((fixtures / "sglang").rglob("0123456789abcdef"))
    assert len(read(model).entries) == 12
    assert len(read(model / "runs").entries) == 12
    one, other = sorted((model / "runs").iterdir())
    assert diff(read(one), read(other)).flipped
    with pytest.raises(UsageError, match="it holds 2 ranks; name one of them"):
        write(by_name("flashinfer-v1"), read(model), model / "no.json")


def test_managed_stores_of_ranks_are_read_where_they_are(fixtures: Path) -> None:
    book = read(fixtures / "sglang-managed")
    assert (book.facts["ranks"], book.facts["runs"]) == ("1", "1")
    assert len(book.entries) == 6
    assert all(key.startswith("autotune/managed/0123456789abcdef/rank_tp0_pp0_dp0: ") for key in book.entries)


def test_history_lists_runs_newest_first_and_counts_what_flipped(fixtures: Path) -> None:
    model = next((fixtures / "sglang").rglob("0123456789abcdef"))
    newest, oldest = history([model / "runs"])
    assert [newest.when, oldest.when] == ["2026-11-02 08:05:10", "2026-11-01 12:00:00"]
    folder = fixtures / "flashinfer-v1"
    assert newest.flipped == len(diff(read(folder / "first.json"), read(folder / "second.json")).flipped)
    assert (newest.added, newest.removed, oldest.flipped) == (0, 0, None)
    assert newest.name == oldest.name == "0123456789abcdef/rank_tp0_pp0_dp0"
    assert len(history([model])) == 4
    assert len(history(sorted((model / "runs").iterdir()))) == 2
    assert [entry.format for entry in history([fixtures / "sglang-managed"])] == ["flashinfer-v2"] * 2


def test_a_store_beside_a_file_of_the_same_rank_hides_neither(fixtures: Path, tmp_path: Path) -> None:
    shutil.copy(fixtures / "flashinfer-v1" / "first.json", tmp_path / "rank_tp0_pp0_dp0.json")
    shutil.copytree(fixtures / "flashinfer-v2" / "store", tmp_path / "rank_tp0_pp0_dp0")
    book = read(tmp_path)
    assert len(book.entries) == 12
    assert book.entries.keys() >= {f"rank_tp0_pp0_dp0: {GEMM}", f"rank_tp0_pp0_dp0.json: {GEMM}"}


def test_runs_are_told_with_and_without_a_random_part_in_their_names(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    random = "6fb7a1c2d3e4f5061728394a5b6c7d8e"  # as SGLang 0.5.23 makes it
    for name in ("20261101_120000", f"20261101_120001.{random}", "99999999_999999"):
        shutil.copy(fixtures / "flashinfer-v1" / "first.json", tmp_path / "runs" / f"rank_tp0_pp0_dp0.{name}.json")
    (tmp_path / "runs" / "notes.json").write_text("{}")
    found = history([tmp_path / "runs"])
    assert len(found) == 3
    assert [entry.when for entry in found if entry.when < "2026-11-02"] == [
        "2026-11-01 12:00:01",
        "2026-11-01 12:00:00",
    ]
    assert (read(tmp_path).facts["runs"], read(tmp_path).facts["ranks"]) == ("3", "1")


def test_history_passes_over_what_is_being_written(fixtures: Path, tmp_path: Path) -> None:
    """FlashInfer writes beside the file, and leaves that there when it is killed."""
    whole = (fixtures / "flashinfer-v1" / "first.json").read_bytes()
    (tmp_path / "autotune_configs_dp0_rank0.json").write_bytes(whole)  # vLLM's
    (tmp_path / ".autotuner_x1y2z3.tmp").write_bytes(whole[: len(whole) // 2])
    assert [Path(entry.path).name for entry in history([tmp_path])] == ["autotune_configs_dp0_rank0.json"]


def test_history_of_what_holds_no_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no book of another tuner in it"):
        history([tmp_path])
    with pytest.raises(UsageError, match="it is no book of another tuner"):
        history([tmp_path / "nothing"])
