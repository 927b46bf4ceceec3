"""The fused-MoE configurations of vLLM and SGLang: the name is part of the book, and each engine can load what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunebook.errors import StoreError, UsageError
from tunebook.interop import ForeignBook, by_name, diff, merge, open_any, write

NAME = "E=8,N=14336,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128,128].json"
#: The same in SGLang, which leaves the space in the list.
SPACED = NAME.replace("128,128", "128, 128")
CONFIGURATION = {"BLOCK_SIZE_M": 16, "num_warps": 4}


def read(path: Path) -> ForeignBook:
    book = open_any(path)
    assert book is not None
    return book


def put(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def loaded_by_vllm(path: Path) -> dict[int, Any]:
    """As vLLM's ``get_moe_configs`` takes a file."""
    document = json.loads(path.read_text())
    document.pop("triton_version", None)
    return {int(rows): configuration for rows, configuration in document.items()}


def loaded_by_sglang(path: Path) -> dict[int, Any]:
    """As SGLang's ``get_moe_configs`` takes a file: every name has to be a number."""
    return {int(rows): configuration for rows, configuration in json.loads(path.read_text()).items()}


def test_the_name_and_the_content_make_the_book(fixtures: Path) -> None:
    book = read(fixtures / "vllm-moe" / NAME)
    assert book.format == "vllm-moe"
    assert book.facts == {
        "device": "NVIDIA_H100_80GB_HBM3",
        "triton_version": "3.4.0",
        "dtype": "fp8_w8a8",
        "block_shape": "[128,128]",
    }
    assert list(book.entries) == [f"E=8,N=14336,M={rows}" for rows in (1, 2, 4, 16, 64, 256, 1024)]
    entry = book.entries["E=8,N=14336,M=64"]
    assert (entry.op, entry.problem) == ("fused_moe", "E=8 N=14336 M=64")
    assert entry.choice == "BLOCK_SIZE_K=128,BLOCK_SIZE_M=64,BLOCK_SIZE_N=64,GROUP_SIZE_M=16,num_stages=3,num_warps=4"


def test_sglangs_files_are_told_by_their_place_or_their_name(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "sglang-moe" / "triton_3_4_0"
    assert read(folder / SPACED).format == "sglang-moe"
    assert read(folder / SPACED).facts["triton_version"] == "3.4.0"
    assert read(folder / SPACED).facts["block_shape"] == "[128,128]"
    shutil.copy(folder / SPACED, tmp_path)
    assert read(tmp_path / SPACED).format == "sglang-moe"
    (down,) = folder.glob("*_down.json")
    shutil.copy(down, tmp_path)
    book = read(tmp_path / down.name)
    assert book.format == "sglang-moe"
    assert book.facts["per_channel_quant"] == "True"
    assert book.facts["projection"] == "down"
    assert "triton_version" not in book.facts


def test_a_file_of_one_engine_becomes_one_that_the_other_can_load(fixtures: Path, tmp_path: Path) -> None:
    book = read(fixtures / "vllm-moe" / NAME)
    write(by_name("sglang-moe"), book, tmp_path / "configs")
    (made,) = (tmp_path / "configs").rglob("*.json")
    assert made.relative_to(tmp_path / "configs") == Path("triton_3_4_0", SPACED)
    assert loaded_by_sglang(made) == loaded_by_vllm(fixtures / "vllm-moe" / NAME)
    assert made.read_bytes() == (fixtures / "sglang-moe" / "triton_3_4_0" / SPACED).read_bytes()
    assert not diff(book, read(made)).different
    write(by_name("vllm-moe"), read(made), tmp_path / "back")
    assert (tmp_path / "back" / NAME).read_bytes() == (fixtures / "vllm-moe" / NAME).read_bytes()


@pytest.mark.parametrize("engine", ["vllm-moe", "sglang-moe"])
def test_what_an_engine_ships_is_written_where_it_looks_for_it(engine: str, fixtures: Path, tmp_path: Path) -> None:
    """Directory, name and bytes: indented by four or by two, with one, two or no line breaks behind it, of a nameless device."""
    shipped = fixtures / engine / "shipped"
    paths = sorted(shipped.rglob("*.json"))
    assert len(paths) == 4
    for path in paths:
        write(by_name(engine), read(path), tmp_path)
        made = tmp_path / path.relative_to(shipped)
        assert made.read_bytes() == path.read_bytes()


def test_a_directory_of_one_version_takes_files_of_that_version_or_of_none(fixtures: Path, tmp_path: Path) -> None:
    book = read(fixtures / "vllm-moe" / NAME)
    write(by_name("sglang-moe"), book, tmp_path / "triton_3_4_0")
    assert (tmp_path / "triton_3_4_0" / SPACED).is_file()
    with pytest.raises(UsageError, match=r"it is of Triton 3\.4\.0; name .*triton_3_4_0, or "):
        write(by_name("sglang-moe"), book, tmp_path / "triton_3_5_1")
    unknown = "E=60,N=1408,device_name=AMD_Instinct_MI300X.json"
    write(by_name("sglang-moe"), read(fixtures / "vllm-moe" / unknown), tmp_path / "triton_3_5_1")
    assert (tmp_path / "triton_3_5_1" / unknown).is_file()


def test_what_sglang_has_no_name_for_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "E=8,N=1,device_name=x,dtype=int4_w4a16,backend=flydsl.json", {"1": CONFIGURATION})
    with pytest.raises(UsageError, match="SGLang looks for no file of that name"):
        write(by_name("sglang-moe"), read(path), tmp_path / "made")
    write(by_name("vllm-moe"), read(path), tmp_path / "made")
    assert (tmp_path / "made" / path.name).exists()


def test_what_vllm_has_no_name_for_is_refused(fixtures: Path, tmp_path: Path) -> None:
    (down,) = (fixtures / "sglang-moe" / "triton_3_4_0").glob("*_down.json")
    with pytest.raises(UsageError, match="vLLM looks for no file of that name"):
        write(by_name("vllm-moe"), read(down), tmp_path)


def test_a_name_that_no_engine_looks_for_is_refused(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the engine looks for this by its name, E=8,N=14336"):
        write(by_name("vllm-moe"), read(fixtures / "vllm-moe" / NAME), tmp_path / "mine.json")
    with pytest.raises(UsageError, match="it has no number of experts"):
        write(by_name("vllm-moe"), read(fixtures / "flashinfer-v1" / "first.json"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_files_of_one_kernel_are_compared_and_merged(fixtures: Path, tmp_path: Path) -> None:
    first, second = read(fixtures / "vllm-moe" / NAME), read(fixtures / "vllm-moe" / "second" / NAME)
    found = diff(first, second)
    assert (found.only_before, found.only_after) == (("E=8,N=14336,M=1",), ())
    assert len(found.flipped) == 6
    merged = merge([second, first])
    assert merged.added == (1,)
    assert len(merged.conflicts) == 6
    write(by_name("vllm-moe"), merged.book, tmp_path)
    rows = loaded_by_vllm(tmp_path / NAME)
    assert list(rows) == [1, 2, 4, 16, 64, 256, 1024]
    assert rows[1] == loaded_by_vllm(first.path)[1]
    assert rows[64] == loaded_by_vllm(second.path)[64]


def test_files_of_different_kernels_are_not_merged(fixtures: Path) -> None:
    folder = fixtures / "vllm-moe"
    with pytest.raises(UsageError, match="of different kernels or versions of Triton"):
        merge([read(folder / NAME), read(folder / "E=60,N=1408,device_name=AMD_Instinct_MI300X.json")])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"0": CONFIGURATION}, "key 0: not a number of rows"),
        ({"16": CONFIGURATION, "016": CONFIGURATION}, "key 016: not a number of rows"),
        ({"best": CONFIGURATION}, "key best: not a number of rows"),
        ({"1": 3}, "key 1: not a configuration"),
        ({"1": {}}, "key 1: not a configuration"),
        ({"1": {"BLOCK_SIZE_M": [16]}}, "key 1: BLOCK_SIZE_M is not a plain value"),
        ({"triton_version": 3, "1": CONFIGURATION}, "key triton_version: not a text"),
        ('{"1": {"a": 1},\n "1": {"a": 2}}', 'line 2, column 2: "1" occurs twice'),
        ('{"1": {"a": NaN}}', "line 1, column 13: not JSON"),
        ('{"1": {"a": 16}', "line 1, column 16: not JSON"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(document: Any, message: str, tmp_path: Path) -> None:
    path = put(tmp_path / NAME, document)
    with pytest.raises(StoreError) as caught:
        open_any(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "E=8.json", "E=8,N=,device_name=x.json", "E=8,N=1,device=x.json"])
def test_a_file_of_another_name_is_no_such_book(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, {"1": CONFIGURATION})
    assert open_any(path) is None
    with pytest.raises(StoreError, match="its name does not say what it is for"):
        by_name("vllm-moe").read(path)
