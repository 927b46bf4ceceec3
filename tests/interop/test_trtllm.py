"""TensorRT-LLM's autotuner cache: parts of ranks, keys taken apart, written back byte for byte, refused with the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURES = Path(__file__).parent / "fixtures" / "trtllm"
RANKS = FIXTURES / "autotuner_cache.json"
OLD = FIXTURES / "cache_data.json"
FORMAT = interop.by_name("trtllm")
KEY = "('op', 'Runner', '(8, 0)', ((16, 32), (32, 64)))"
RECORD = {"runner_id": 0, "tactic": "3", "min_time": 0.5}
METADATA = {
    "lib_version": "1.3.0",
    "creation_timestamp": 1.5,
    "device_name": "NVIDIA B200",
    "device_capability": [10, 0],
}


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "trtllm"
    return book


def written(path: Path, parts: dict[str, Any], metadata: dict[str, Any] = METADATA) -> Path:
    path.write_text(json.dumps({"metadata": metadata, **parts}, indent=2))
    return path


def test_each_part_has_its_entries_and_the_metadata_are_facts() -> None:
    book = book_of(RANKS)

    assert book.facts["lib_version"] == "1.3.0rc24"
    assert book.facts["device_name"] == "NVIDIA B200"
    assert book.facts["device_capability"] == "[10,0]"
    assert list(book.entries) == [
        "rank_0|trtllm::fp4_gemm::gemm|((8, 3584), (4096, 3584), (0,))",
        "rank_0|trtllm::fused_moe::gemm1|((16, 7168), (32, 4096, 448))",
        "shared|trtllm::tunable_allreduce::allreduce|((128, 7168), (-1, 7168))",
    ]
    entry = book.entries["rank_0|trtllm::fp4_gemm::gemm|((8, 3584), (4096, 3584), (0,))"]
    assert entry.op == "trtllm::fp4_gemm::gemm"
    assert entry.problem == "((8, 3584), (4096, 3584), (0,))"
    assert entry.choice == "id=(torch.bfloat16, 0),runner=FP4GemmRunner,tactic=12"
    assert entry.seconds == pytest.approx(9.31e-6)


def test_runners_that_differ_in_their_id_are_winners_side_by_side() -> None:
    entry = book_of(RANKS).entries["rank_0|trtllm::fused_moe::gemm1|((16, 7168), (32, 4096, 448))"]

    assert entry.seconds is None
    assert [trial.seconds for trial in entry.trials] == [pytest.approx(4.98e-5), pytest.approx(4.12e-5)]
    assert entry.choice == "; ".join(trial.tactic for trial in entry.trials)
    assert "tactic=[64, 3]" in entry.choice


def test_an_older_file_has_one_part_and_a_hash_that_is_no_part_of_the_choice() -> None:
    (entry,) = book_of(OLD).entries.values()

    assert entry.key == "cache_data|trtllm::fp8_rowwise_gemm::gemm|((8, 4096), (6144, 4096), (8,), (6144,))"
    assert entry.choice == "runner=FP8RowwiseGemmRunner,tactic=5"
    assert entry.seconds == pytest.approx(1.23e-5)


@pytest.mark.parametrize("path", [RANKS, OLD], ids=lambda path: path.name)
def test_it_is_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    FORMAT.write(book_of(path), tmp_path / "again.json")

    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_key_that_cannot_be_taken_apart_is_a_miss_and_stays(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"rank_0": {"<object at 0x1>": RECORD, KEY: RECORD}})

    book = book_of(path)

    assert list(book.entries) == ["rank_0|op|((16, 32), (32, 64))"]
    assert [str(miss) for miss in book.misses] == [
        f"{path}, rank_0 <object at 0x1>: entry: its key is not (op, runner, id, shapes), and TensorRT-LLM would pass it over"
    ]
    FORMAT.write(book, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_two_files_become_one_and_no_other_runner_gets_before_the_first(tmp_path: Path) -> None:
    shapes = "((16, 32), (32, 64))"
    other_id, other_runner = f"('op', 'Runner', '(8, 1)', {shapes})", f"('op', 'Faster', '(8, 0)', {shapes})"
    new = "('op', 'Runner', '(8, 0)', ((32, 32), (32, 64)))"
    first = written(tmp_path / "first.json", {"rank_0": {KEY: RECORD}})
    rows = {KEY: {**RECORD, "tactic": "9"}, other_id: RECORD, other_runner: RECORD, new: RECORD}
    second = written(tmp_path / "second.json", {"rank_0": rows, "rank_1": {KEY: RECORD}})

    merged = interop.merge([book_of(first), book_of(second)])
    FORMAT.write(merged.book, tmp_path / "both.json")

    assert json.loads((tmp_path / "both.json").read_text()) == {
        "metadata": METADATA,
        "rank_0": {KEY: RECORD, other_id: RECORD, new: RECORD},
        "rank_1": {KEY: RECORD},
    }
    assert book_of(tmp_path / "both.json").entries == merged.book.entries
    assert json.loads(first.read_text())["rank_0"] == {KEY: RECORD}


def test_files_of_different_devices_are_kept_apart(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", {"rank_0": {}})
    other = written(tmp_path / "other.json", {"rank_0": {}}, {**METADATA, "device_name": "NVIDIA H200"})

    with pytest.raises(UsageError, match="device_name is NVIDIA B200 and NVIDIA H200"):
        interop.merge([book_of(one), book_of(other)])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({**RECORD, "min_time": "0.5"}, "min_time '0.5' is not a duration"),
        ({**RECORD, "min_time": -0.5}, "min_time '-0.5' is not a duration"),
        ({**RECORD, "min_time": None}, "min_time 'None' is not a duration"),
        ({**RECORD, "min_time": 10**400}, "is not a duration"),
        ({**RECORD, "runner_id": "0"}, "runner_id has to be a whole number, and is text"),
        ({**RECORD, "runner_id": True}, "runner_id has to be a whole number, and is true or false"),
        ({"runner_id": 0, "min_time": 0.5}, "tactic is missing"),
        ([0, 3, 0.5], "has to be an object, and is a list"),
    ],
)
def test_a_malformed_entry_is_refused_by_its_key(tmp_path: Path, record: object, said: str) -> None:
    path = written(tmp_path / "bad.json", {"rank_0": {KEY: record}})

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: rank_0")
    assert KEY in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RANKS.read_text()[:-40], "not JSON"),
        (RANKS.read_text().replace("0.00931", "NaN"), "line 15, column 19: not JSON"),
        (RANKS.read_text().replace("0.0412", "1e999"), "not JSON"),
        (RANKS.read_text().replace('"runner_id": 0', '"runner_id": 0, "runner_id": 1', 1), '"runner_id" occurs twice'),
        (RANKS.read_text().replace('"shared": {', '"shared": 3, "x": {'), "shared has to be an object"),
    ],
    ids=["truncated", "NaN", "no float", "twice", "part"],
)
def test_a_malformed_document_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
