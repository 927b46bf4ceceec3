"""Triton's autotune cache: every configuration with its time, ``Infinity`` where it failed, written back byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURE = Path(__file__).parent / "fixtures" / "triton" / "add_kernel.autotune.json"
FORMAT = interop.by_name("triton")
CONFIG: dict[str, Any] = {
    "kwargs": {"BLOCK": 64},
    "num_warps": 4,
    "num_ctas": 1,
    "num_stages": 3,
    "maxnreg": None,
    "pre_hook": None,
    "ir_override": None,
}


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "triton"
    return book


def entry_of(path: Path) -> interop.Entry:
    (entry,) = book_of(path).entries.values()
    return entry


def written(path: Path, timings: object, key: object = (4096,)) -> Path:
    path.write_text(json.dumps({"key": key, "configs_timings": timings}))
    return path


def test_every_configuration_is_a_trial_and_the_least_median_is_the_choice() -> None:
    entry = entry_of(FIXTURE)

    assert entry.key == "add_kernel|98432,torch.float32,torch.float32,torch.float32"
    assert entry.op == "add_kernel"
    assert entry.problem == "98432,torch.float32,torch.float32,torch.float32"
    assert entry.choice == "BLOCK_SIZE=256,num_ctas=1,num_stages=3,num_warps=4"
    assert entry.seconds == pytest.approx(0.015e-3)
    assert {trial.tactic: trial.seconds for trial in entry.trials} == {
        "BLOCK_SIZE=128,num_ctas=1,num_stages=3,num_warps=4": pytest.approx(0.02e-3),
        "BLOCK_SIZE=256,num_ctas=1,num_stages=3,num_warps=4": pytest.approx(0.015e-3),
        "BLOCK_SIZE=1024,num_ctas=1,num_stages=2,num_warps=8": pytest.approx(0.0175e-3),
        "BLOCK_SIZE=65536,maxnreg=32,num_ctas=1,num_stages=3,num_warps=4": None,
    }


def test_a_configuration_that_failed_says_so() -> None:
    assert [trial.reason for trial in entry_of(FIXTURE).trials if trial.seconds is None] == [
        "inf: it did not compile, or did not fit"
    ]


def test_it_is_written_byte_for_byte(tmp_path: Path) -> None:
    FORMAT.write(book_of(FIXTURE), tmp_path / FIXTURE.name)

    assert (tmp_path / FIXTURE.name).read_bytes() == FIXTURE.read_bytes()


def test_equal_medians_are_told_apart_as_triton_does(tmp_path: Path) -> None:
    second = {**CONFIG, "kwargs": {"BLOCK": 128}}
    path = written(tmp_path / "k.autotune.json", [[CONFIG, [0.5, 0.5, 0.9]], [second, [0.5, 0.4, 0.9]]])

    assert entry_of(path).choice.startswith("BLOCK=128,")


def test_a_benchmark_of_ones_own_may_give_one_number(tmp_path: Path) -> None:
    path = written(tmp_path / "k.autotune.json", [[CONFIG, 0.5]])

    assert entry_of(path).seconds == pytest.approx(0.5e-3)


def test_where_every_configuration_failed_the_first_is_the_choice(tmp_path: Path) -> None:
    second = {**CONFIG, "num_warps": 8}
    path = written(tmp_path / "k.autotune.json", [[CONFIG, [float("inf")] * 3], [second, [float("inf")] * 3]])

    entry = entry_of(path)

    assert entry.choice.endswith("num_warps=4")
    assert entry.seconds is None


def test_a_configuration_that_is_there_twice_is_named_and_the_later_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "k.autotune.json", [[CONFIG, [0.5]], [CONFIG, [0.75]]])

    book = book_of(path)

    (entry,) = book.entries.values()
    assert entry.seconds == pytest.approx(0.75e-3)
    assert "configs_timings[1]" in str(book.misses[0])


def test_it_is_told_by_its_members_too(tmp_path: Path) -> None:
    path = tmp_path / "renamed.json"
    path.write_bytes(FIXTURE.read_bytes())

    assert entry_of(path).op == "renamed"


def test_two_files_do_not_become_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="books of triton are not merged"):
        interop.merge([book_of(FIXTURE), book_of(FIXTURE)])


@pytest.mark.parametrize(
    ("timings", "said"),
    [
        ([], "configs_timings: it has no configuration"),
        ([[CONFIG, [0.5]], [CONFIG]], "configs_timings[1]: it is not [configuration, times]"),
        ([[CONFIG, []]], "configs_timings[0]: it has no times"),
        ([[CONFIG, ["0.5"]]], "configs_timings[0]: time '0.5' is not a duration"),
        ([[CONFIG, [-1.0]]], "configs_timings[0]: time '-1.0' is not a duration"),
        ([[CONFIG, [True]]], "configs_timings[0]: time 'True' is not a duration"),
        ([[{"num_warps": 4}, [0.5]]], "configs_timings[0]: kwargs has to be an object, and is missing"),
        ([[{**CONFIG, "kwargs": [64]}, [0.5]]], "kwargs has to be an object, and is a list"),
        ({"a": 1}, "configs_timings has to be a list, and is an object"),
    ],
)
def test_a_malformed_configuration_is_refused_by_its_place(tmp_path: Path, timings: object, said: str) -> None:
    path = written(tmp_path / "bad.autotune.json", timings)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FIXTURE.read_text()[:-20], "not JSON"),
        (FIXTURE.read_text().replace("Infinity", "NaN", 1), "NaN is not a number"),
        (FIXTURE.read_text().replace("Infinity", "-Infinity", 1), "-Infinity is not a number"),
        (FIXTURE.read_text().replace("Infinity", "1e999", 1), "1e999 is not a number"),
        (
            FIXTURE.read_text().replace('"num_warps": 4', '"num_warps": 4, "num_warps": 8', 1),
            '"num_warps" occurs twice',
        ),
        ('{"key": ["\\ud800"], "configs_timings": []}', "surrogates not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"key": ["a"]}', "configs_timings has to be a list, and is missing"),
        ("[1]", "it is no object with key and configs_timings"),
        ("{", "line 1, column 2"),
    ],
)
def test_what_is_no_such_document_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.autotune.json"
    path.write_text(text)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
