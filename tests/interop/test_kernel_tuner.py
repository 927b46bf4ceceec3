"""Kernel Tuner's cache: every configuration a trial, open and closed files written back byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURES = Path(__file__).parent / "fixtures" / "kernel-tuner"
CLOSED = FIXTURES / "vector_add.json"
OPEN = FIXTURES / "vector_add.open.json"
FORMAT = interop.by_name("kernel-tuner")
FOUND = {"block_size_x": 64, "time": 0.5, "times": [0.5, 0.5], "compile_time": 100.0, "GB/s": 2.0}


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "kernel-tuner"
    return book


def entry_of(path: Path) -> interop.Entry:
    (entry,) = book_of(path).entries.values()
    return entry


def written(path: Path, cache: dict[str, Any], **members: Any) -> Path:
    document = {
        "device_name": "NVIDIA A100",
        "kernel_name": "add",
        "problem_size": [4096, 16],
        "tune_params_keys": ["block_size_x"],
        "tune_params": {"block_size_x": [64, 128]},
        **members,
        "cache": cache,
    }
    path.write_text(json.dumps(document, indent=""))
    return path


def test_every_configuration_is_a_trial_and_the_fastest_is_the_choice() -> None:
    document = json.loads(CLOSED.read_text())
    times = {key: found.get("time") for key, found in document["cache"].items()}
    best = min((key for key, time in times.items() if time is not None), key=lambda key: times[key])

    entry = entry_of(CLOSED)

    assert entry.key == "vector_add|4096"
    assert entry.op == "vector_add"
    assert entry.problem == "problem size 4096"
    x, unroll = best.split(",")
    assert entry.choice == f"block_size_x={x},unroll={unroll}"
    assert entry.seconds == pytest.approx(times[best] * 1e-3)
    assert [trial.seconds for trial in entry.trials] == [
        None if time is None else pytest.approx(time * 1e-3) for time in times.values()
    ]


def test_what_did_not_compile_says_so() -> None:
    failed = [trial for trial in entry_of(CLOSED).trials if trial.seconds is None]

    assert {trial.reason for trial in failed} == {"CompilationFailedConfig"}
    assert all("unroll=3" in trial.tactic for trial in failed)


def test_facts_tell_device_and_parameters() -> None:
    facts = book_of(CLOSED).facts

    assert facts["kernel"] == "vector_add"
    assert facts["parameters"] == "block_size_x,unroll"
    assert facts["objective"] == "time"
    assert facts["device"] == json.loads(CLOSED.read_text())["device_name"]


@pytest.mark.parametrize("path", [CLOSED, OPEN], ids=lambda path: path.name)
def test_it_is_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    FORMAT.write(book_of(path), tmp_path / "again.json")

    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_session_that_still_runs_has_the_same_entries() -> None:
    assert book_of(OPEN).entries == book_of(CLOSED).entries


def test_a_session_that_has_just_begun_has_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.write_text(written(tmp_path / "closed.json", {}).read_text()[:-3])

    entry = entry_of(path)

    assert entry.choice == "none: every configuration failed"
    assert entry.trials == ()
    FORMAT.write(book_of(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_an_objective_of_which_more_is_better_is_maximised(tmp_path: Path) -> None:
    cache = {"64": FOUND, "128": {**FOUND, "block_size_x": 128, "time": 0.25, "GB/s": 1.0}}

    by_rate = entry_of(written(tmp_path / "rate.json", cache, objective="GB/s"))
    by_time = entry_of(written(tmp_path / "time.json", cache, objective="time"))

    assert (by_rate.choice, by_rate.seconds) == ("block_size_x=64", pytest.approx(0.5e-3))
    assert (by_time.choice, by_time.seconds) == ("block_size_x=128", pytest.approx(0.25e-3))


@pytest.mark.parametrize("error", ["CompilationFailedConfig", "RuntimeFailedConfig", "InvalidConfig"])
def test_newer_versions_name_the_error_beside_the_time(tmp_path: Path, error: str) -> None:
    cache = {"64": {"block_size_x": 64, "__error__": error}, "128": {**FOUND, "block_size_x": 128}}

    entry = entry_of(written(tmp_path / "a.json", cache, objective=["time", "GB/s"]))

    assert entry.choice == "block_size_x=128"
    assert entry.trials[0].reason == error
    assert book_of(tmp_path / "a.json").facts["objective"] == "time,GB/s"


@pytest.mark.parametrize("time", ["InvalidConfig", "RuntimeFailedConfig", 1e20, None])
def test_a_configuration_that_failed_is_never_the_choice(tmp_path: Path, time: object) -> None:
    cache = {"64": {**FOUND, "time": time}, "128": {**FOUND, "block_size_x": 128}}

    entry = entry_of(written(tmp_path / "a.json", cache))

    assert entry.choice == "block_size_x=128"
    assert entry.trials[0].seconds is None
    assert entry.trials[0].reason


def test_two_sessions_on_one_problem_become_one(tmp_path: Path) -> None:
    first = written(tmp_path / "first.json", {"64": FOUND})
    second = written(
        tmp_path / "second.json",
        {"64": {**FOUND, "time": 9.0}, "256": {**FOUND, "block_size_x": 256, "time": 0.25}},
        tune_params={"block_size_x": [64, 256]},
    )

    merged = interop.merge([book_of(first), book_of(second)])
    FORMAT.write(merged.book, tmp_path / "both.json")

    document = json.loads((tmp_path / "both.json").read_text())
    assert list(document["cache"]) == ["64", "256"]
    assert document["cache"]["64"] == FOUND
    assert document["tune_params"] == {"block_size_x": [64, 128, 256]}
    assert entry_of(tmp_path / "both.json").choice == "block_size_x=256"
    assert book_of(tmp_path / "both.json").entries == merged.book.entries


def test_caches_of_different_problems_are_kept_apart(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", {"64": FOUND})
    other = written(tmp_path / "other.json", {"64": FOUND}, problem_size=[8192, 16])

    with pytest.raises(UsageError, match=r"problem size is \[4096,16\] and \[8192,16\]"):
        interop.merge([book_of(one), book_of(other)])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({**FOUND, "time": -0.5}, "cache 64: time '-0.5' is not a duration"),
        ({**FOUND, "time": [0.5]}, "cache 64: time '[0.5]' is not a duration"),
        ({"time": 0.5}, "cache 64: parameter block_size_x is missing"),
        ([0.5], "cache: 64 has to be an object, and is a list"),
    ],
)
def test_a_malformed_configuration_is_refused_by_its_key(tmp_path: Path, found: Any, said: str) -> None:
    path = written(tmp_path / "bad.json", {"64": found})

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"device_name": 3}, "device_name has to be text, and is a whole number"),
        ({"tune_params_keys": ["block_size_x", "unroll"]}, "tune_params: unroll has to be a list, and is missing"),
        ({"tune_params_keys": [64]}, "tune_params_keys: a name is no text"),
        ({"tune_params": {"block_size_x": 64}}, "tune_params: block_size_x has to be a list, and is a whole number"),
    ],
)
def test_a_malformed_head_is_refused_by_its_member(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "bad.json", {"64": FOUND}, **members)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CLOSED.read_text()[: len(CLOSED.read_text()) * 3 // 4], "not JSON"),
        (CLOSED.read_text().replace('"compile_time": ', '"compile_time": NaN, "x": ', 1), "not JSON"),
        (CLOSED.read_text().replace('"16,1": ', '"16,1": {}, "16,1": ', 1), '"16,1" occurs twice'),
    ],
    ids=["torn", "NaN", "twice"],
)
def test_a_malformed_document_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: line ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
