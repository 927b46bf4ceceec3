"""T4: read and written byte for byte, made of a run, of Kernel Tuner's cache, and of other books that have trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError
from tunebook.records import Environment, Header, Rejected, Timed, TrialLine
from tunebook.store import Run

FIXTURES = Path(__file__).parent / "fixtures"
FIXTURE = FIXTURES / "t4" / "vector_add.json"
CACHE = FIXTURES / "kernel-tuner" / "vector_add.json"
FORMAT = interop.by_name("t4")
KEY = "linear|N=64,K=32|bf16|M≤16"
RESULT: dict[str, Any] = {
    "configuration": {"block_size_x": 64},
    "times": {"runtimes": [0.5, 0.7]},
    "invalidity": "correct",
    "correctness": 1,
}


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "t4"
    return book


def entry_of(path: Path) -> interop.Entry:
    (entry,) = book_of(path).entries.values()
    return entry


def written(path: Path, *results: object) -> Path:
    path.write_text(json.dumps({"results": results, "schema_version": "1.0.0"}))
    return path


def run_of(*trials: tuple[str, Timed | Rejected, int]) -> Run:
    header = Header(
        session="0123456789ab",
        started="2025-01-02T03:04:05+00:00",
        policy="fresh",
        environment=Environment(hard={"device": "cpu"}),
        version="0.1.0",
    )
    lines = tuple(TrialLine(problem=problem, trial=trial, race=race) for problem, trial, race in trials)
    return Run(
        path=Path("winners.jsonl"),
        header=header,
        trials=lines,
        verdicts={},
        plans={},
        footer=None,
        torn=False,
        misses=(),
    )


def timed(tactic: str, *samples: float, **fields: Any) -> Timed:
    return Timed(tactic=tactic, samples=samples, rounds=tuple(range(len(samples))), **fields)


def test_every_result_is_a_trial_and_the_fastest_is_the_choice() -> None:
    results = json.loads(FIXTURE.read_text())["results"]

    entry = entry_of(FIXTURE)

    assert entry.key == "kernel|block_size_x,unroll"
    assert entry.op == "kernel"
    assert len(entry.trials) == len(results)
    right = [result for result in results if result["invalidity"] == "correct"]
    times = {
        (result["configuration"]["block_size_x"], result["configuration"]["unroll"]): next(
            one["value"] for one in result["measurements"] if one["name"] == "time"
        )
        for result in right
    }
    x, unroll = min(times, key=lambda one: times[one])
    assert entry.choice == f"block_size_x={x},unroll={unroll}"
    assert entry.seconds == pytest.approx(times[x, unroll] * 1e-3)
    assert book_of(FIXTURE).facts == {"schema_version": "1.0.0"}


def test_it_is_written_byte_for_byte(tmp_path: Path) -> None:
    FORMAT.write(book_of(FIXTURE), tmp_path / "again.json")

    assert (tmp_path / "again.json").read_bytes() == FIXTURE.read_bytes()


def test_a_cache_of_kernel_tuners_becomes_what_it_writes_of_that_session(tmp_path: Path) -> None:
    book = interop.open_any(CACHE)
    assert book is not None

    FORMAT.write(book, tmp_path / "results.json")

    expected = json.loads(FIXTURE.read_text())
    for result in expected["results"]:
        del result["times"]["framework"], result["times"]["search_algorithm"]  # the cache has not these
        for one in result["measurements"]:
            if one["name"] == "__error__":
                one["value"] = "CompilationFailedConfig"  # Kernel Tuner writes an empty text
    assert json.loads((tmp_path / "results.json").read_text()) == expected


def test_a_runs_trials_are_results_with_every_sample_of_its_races(tmp_path: Path) -> None:
    run = run_of(
        (KEY, timed("default", 3e-3), 0),
        (KEY, timed("onednn[batch_hint=16]", 2e-3), 0),
        (KEY, Rejected(tactic="native[block=4]", reason="memory", detail="needs 9 GB"), 0),
        (KEY, Rejected(tactic="torch[kind=bmm]", reason="crash", ran=True), 0),
        (KEY, timed("default", 1e-3, 1.5e-3, 1.25e-3, bytes=64), 1),
        (KEY, timed("onednn[batch_hint=16]", 0.5e-3, 0.75e-3, error=0.01), 1),
        (KEY, timed("onednn[batch_hint=16]", 1e-3), 2),
        ("router|E=8|bf16|M≤1", timed("default", 1e-5), 0),
    )

    FORMAT.write(interop.from_run(run, "t4"), tmp_path / "run.json")

    document = json.loads((tmp_path / "run.json").read_text())
    assert document["schema_version"] == "1.0.0"
    default, onednn, native, torch, router = document["results"]
    assert default["configuration"] == {"runner": "default"}
    assert default["times"]["runtimes"] == pytest.approx([1, 1.5, 1.25])
    assert {one["name"]: one["value"] for one in default["measurements"]} == {"time": pytest.approx(1.25), "memory": 64}
    assert onednn["configuration"] == {"runner": "onednn", "batch_hint": 16}
    assert onednn["times"]["runtimes"] == pytest.approx([0.5, 0.75, 1])
    assert onednn["problem"] == KEY
    assert onednn["timestamp"] == "2025-01-02T03:04:05+00:00"
    assert (native["invalidity"], native["correctness"], native["measurements"]) == ("constraints", 0, [])
    assert torch["invalidity"] == "runtime"
    assert router["problem"] == "router|E=8|bf16|M≤1"
    assert router["times"]["runtimes"] == pytest.approx([0.01])
    for result in document["results"]:
        assert {"configuration", "times", "invalidity", "correctness"} <= result.keys()

    entries = book_of(tmp_path / "run.json").entries
    assert entries == interop.from_run(run, "t4").entries
    assert entries[KEY].choice == "batch_hint=16,runner=onednn"
    assert entries[KEY].seconds == pytest.approx(0.75e-3)
    assert entries["router|E=8|bf16|M≤1"].op == "router"


def test_a_tactic_that_fails_in_its_race_is_a_failure_and_one_that_is_mended_is_none(tmp_path: Path) -> None:
    failed = Rejected(tactic="native", reason="correctness", ran=True)
    mended = Rejected(tactic="torch", reason="compile")
    run = run_of(
        (KEY, timed("native", 1e-3), 1), (KEY, failed, 0), (KEY, mended, 0), (KEY, timed("torch", 1e-3, 2e-3), 1)
    )

    (entry,) = interop.from_run(run, "t4").entries.values()

    assert [(trial.tactic, trial.reason) for trial in entry.trials] == [
        ("runner=native", "correctness"),
        ("runner=torch", ""),
    ]


def test_a_parameter_may_bear_any_name_and_be_infinite(tmp_path: Path) -> None:
    run = run_of((KEY, timed("native[runner=2,limit=Infinity]", 1e-3), 1))

    FORMAT.write(interop.from_run(run, "t4"), tmp_path / "run.json")

    (result,) = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)["results"]
    assert result["configuration"] == {"runner": "native", "runner_": 2, "limit": "inf"}


def test_a_run_without_trials_is_a_file_without_results(tmp_path: Path) -> None:
    FORMAT.write(interop.from_run(run_of(), "t4"), tmp_path / "run.json")

    assert book_of(tmp_path / "run.json").entries == {}


def test_a_book_with_trials_becomes_t4(tmp_path: Path) -> None:
    triton = interop.open_any(FIXTURES / "triton" / "add_kernel.autotune.json")
    assert triton is not None

    FORMAT.write(triton, tmp_path / "results.json")

    ((key, entry),) = book_of(tmp_path / "results.json").entries.items()
    ((was, before),) = triton.entries.items()
    assert key == was
    assert entry.seconds == pytest.approx(before.seconds)
    assert entry.choice == f"tactic={before.choice}"
    assert [trial.seconds for trial in entry.trials] == [
        None if trial.seconds is None else pytest.approx(trial.seconds) for trial in before.trials
    ]


def test_a_winner_with_a_time_is_a_trial_and_one_without_is_left_out(tmp_path: Path) -> None:
    tunable = interop.open_any(FIXTURES / "tunableop" / "tunableop_results0.csv")
    assert tunable is not None
    timed = {key: entry for key, entry in tunable.entries.items() if entry.seconds is not None}
    assert 0 < len(timed) < len(tunable.entries)

    FORMAT.write(tunable, tmp_path / "results.json")

    found = book_of(tmp_path / "results.json").entries
    assert {key: entry.choice for key, entry in found.items()} == {
        key: f"tactic={entry.choice}" for key, entry in timed.items()
    }
    assert [entry.seconds for entry in found.values()] == [pytest.approx(entry.seconds) for entry in timed.values()]
    assert any("without a time" in str(loss) for loss in interop.losses(FORMAT, "tunableop"))


def test_every_problem_with_a_time_becomes_t4_beside_those_with_trials(tmp_path: Path) -> None:
    trtllm = interop.open_any(FIXTURES / "trtllm" / "autotuner_cache.json")
    assert trtllm is not None
    assert {bool(entry.trials) for entry in trtllm.entries.values()} == {True, False}

    FORMAT.write(trtllm, tmp_path / "results.json")

    assert book_of(tmp_path / "results.json").entries.keys() == trtllm.entries.keys()


def test_winners_of_several_runners_are_no_failures(tmp_path: Path) -> None:
    """FlashInfer keeps no times: which runner's entry it serves is open, and none of them failed."""
    shapes = "((1, 2),), ())"
    winners = {f"('op', '{runner}', {shapes}": [runner, 1] for runner in ("A", "B")}
    (tmp_path / "book.json").write_text(json.dumps({"_metadata": {"flashinfer_version": "1"}, **winners}))
    book = interop.open_any(tmp_path / "book.json")
    assert book is not None
    with pytest.raises(UsageError, match="this book of flashinfer-v1 has none"):
        FORMAT.write(book, tmp_path / "results.json")


def test_a_book_without_trials_does_not(tmp_path: Path) -> None:
    helion = interop.open_any(next((FIXTURES / "helion").glob("*.best_config")))
    assert helion is not None

    with pytest.raises(UsageError, match="T4 holds trials with their times, and this book of helion has none"):
        FORMAT.write(helion, tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_without_a_measured_time_the_mean_of_the_runtimes_counts(tmp_path: Path) -> None:
    assert entry_of(written(tmp_path / "a.json", RESULT)).seconds == pytest.approx(0.6e-3)


@pytest.mark.parametrize(("unit", "seconds"), [("ms", 2e-3), ("s", 2.0), ("us", 2e-6), ("ns", 2e-9), ("", 2e-3)])
def test_a_measured_time_has_its_unit(tmp_path: Path, unit: str, seconds: float) -> None:
    result = {**RESULT, "measurements": [{"name": "time", "value": 2, "unit": unit}]}

    assert entry_of(written(tmp_path / "a.json", result)).seconds == pytest.approx(seconds)


def test_an_objective_of_which_more_is_better_is_maximised(tmp_path: Path) -> None:
    slow = {**RESULT, "objectives": ["GFLOP/s"], "measurements": [{"name": "GFLOP/s", "value": 9.0, "unit": ""}]}
    fast = {
        **slow,
        "configuration": {"block_size_x": 128},
        "times": {"runtimes": [0.1]},
        "measurements": [{"name": "GFLOP/s", "value": 8.0, "unit": ""}],
    }

    assert entry_of(written(tmp_path / "a.json", fast, slow)).choice == "block_size_x=64"


def test_two_files_become_one_and_the_first_counts(tmp_path: Path) -> None:
    other = {**RESULT, "configuration": {"block_size_x": 128}, "times": {"runtimes": [0.1]}}
    first = written(tmp_path / "first.json", RESULT)
    second = written(tmp_path / "second.json", {**RESULT, "times": {"runtimes": [9.0]}}, other)

    merged = interop.merge([book_of(first), book_of(second)])
    FORMAT.write(merged.book, tmp_path / "both.json")

    assert json.loads((tmp_path / "both.json").read_text())["results"] == [RESULT, other]
    assert book_of(tmp_path / "both.json").entries == merged.book.entries


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (3, "it is no object"),
        ({**RESULT, "configuration": [1]}, "configuration has to be an object, and is a list"),
        ({name: RESULT[name] for name in ("configuration", "invalidity")}, "times has to be an object, and is missing"),
        ({**RESULT, "invalidity": "slow"}, "invalidity 'slow' is none of correct, timeout"),
        ({**RESULT, "invalidity": None}, "invalidity has to be text, and is null"),
        ({**RESULT, "times": {"runtimes": 0.5}}, "times: runtimes has to be a list, and is a number"),
        ({**RESULT, "times": {"runtimes": [-1]}}, "times: runtime '-1' is not a duration"),
        ({**RESULT, "measurements": {"name": "time"}}, "measurements has to be a list, and is an object"),
        ({**RESULT, "measurements": [3]}, "a measurement is no object"),
        ({**RESULT, "measurements": [{"value": 3}]}, "measurements: name has to be text, and is missing"),
        ({**RESULT, "measurements": [{"name": "time", "value": "3"}]}, "time '3' is not a duration"),
        ({**RESULT, "problem": 3}, "problem has to be text, and is a whole number"),
    ],
)
def test_a_malformed_result_is_refused_by_its_place(tmp_path: Path, result: object, said: str) -> None:
    path = written(tmp_path / "bad.json", RESULT, result)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: results[1]")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FIXTURE.read_text()[:-30], "not JSON"),
        (FIXTURE.read_text().replace('"correctness": 1', '"correctness": NaN', 1), "not JSON"),
        (
            FIXTURE.read_text().replace('"correctness": 1', '"correctness": 1, "correctness": 0', 1),
            '"correctness" occurs twice',
        ),
    ],
    ids=["truncated", "NaN", "twice"],
)
def test_a_malformed_document_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: line 1, column ")
    assert said in str(error.value)


def test_runtimes_have_the_unit_that_the_metadata_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"results": [RESULT], "schema_version": "1.0.0", "metadata": {"timeunit": "microseconds"}})
    )

    assert entry_of(path).seconds == pytest.approx(0.6e-6)
