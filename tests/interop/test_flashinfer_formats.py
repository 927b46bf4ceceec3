"""FlashInfer's two stores: what is in them, what is refused, and two of them made one."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import StoreError, UsageError
from tunebook.interop import ForeignBook, by_name, diff, merge, open_any, write

GEMM = "('demo::gemm', ((16, 64), (64, 32)), (torch.bfloat16, True))"
MOE = "('demo::moe', ((256, 48), (4, 48, 16)), ('swiglu', None, 2))"


def read(path: Path) -> ForeignBook:
    book = open_any(path)
    assert book is not None
    return book


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# ---------------------------------------------------------------- what is in them


def test_a_v1_file_tells_its_problems_winners_and_environment(fixtures: Path) -> None:
    book = read(fixtures / "flashinfer-v1" / "first.json")
    assert book.format == "flashinfer-v1"
    assert len(book.entries) == 6
    assert book.facts["flashinfer_version"].startswith("0.7.2")
    assert book.facts["gpu"] == "unknown"
    gemm = book.entries[GEMM]
    assert gemm.op == "demo::gemm"
    assert gemm.problem == "16x64 64x32, extras (torch.bfloat16, True)"
    assert (gemm.seconds, gemm.trials) == (None, ())
    raw = document(fixtures / "flashinfer-v1" / "first.json")
    runner, tactic, policy = next(value for key, value in raw.items() if "gemm" in key and "(16, 64)" in key)
    shown = json.dumps(tactic, separators=(",", ":"))
    assert gemm.choice == f"{runner}{shown if isinstance(tactic, list) else f'[{tactic}]'}"
    assert policy[0] == "cuda_graph_profile_replays"
    assert book.entries[MOE].problem == "256x48 4x48x16, extras ('swiglu', None, 2)"


def test_two_tunings_are_compared_by_problem_whichever_runner_won(fixtures: Path) -> None:
    folder = fixtures / "flashinfer-v1"
    found = diff(read(folder / "first.json"), read(folder / "second.json"))
    assert (found.only_before, found.only_after, found.facts) == ((), (), ())
    assert found.same + len(found.flipped) == 6
    runners = {(flip.before.partition("[")[0], flip.after.partition("[")[0]) for flip in found.flipped}
    assert any(before != after for before, after in runners), "the fixtures have a problem that another runner won"


def test_a_v2_store_has_the_same_book_as_the_v1_file_of_the_same_tuning(fixtures: Path) -> None:
    one, other = read(fixtures / "flashinfer-v1" / "first.json"), read(fixtures / "flashinfer-v2" / "store")
    assert other.format == "flashinfer-v2"
    assert other.facts["cache_schema"] == "v2"
    # In a v2 context the default of the first runner races as well, and may win.
    assert one.entries.keys() == other.entries.keys()


def test_a_v2_store_is_read_from_its_root_its_v2_and_its_environment(fixtures: Path) -> None:
    root = fixtures / "flashinfer-v2" / "store"
    (environment,) = (root / "v2").iterdir()
    books = [read(path) for path in (root, root / "v2", environment)]
    assert books[0].entries == books[1].entries == books[2].entries


def test_two_environments_of_one_store_are_kept_apart(fixtures: Path, tmp_path: Path) -> None:
    shutil.copytree(fixtures / "flashinfer-v2" / "store", tmp_path / "store")
    (environment,) = (tmp_path / "store" / "v2").iterdir()
    manifest = {**document(environment / "manifest.json"), "gpu": "NVIDIA H200"}
    name = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
    shutil.copytree(environment, environment.with_name(name))
    (environment.with_name(name) / "manifest.json").write_text(json.dumps(manifest))
    book = read(tmp_path / "store")
    assert book.misses == ()
    assert len(book.entries) == 12
    assert book.facts[f"{name}: gpu"] == "NVIDIA H200"
    with pytest.raises(UsageError, match="it holds 2 environments, and a v1 file holds one; name one of them"):
        write(by_name("flashinfer-v1"), book, tmp_path / "one.json")
    write(by_name("flashinfer-v1"), read(environment.with_name(name)), tmp_path / "one.json")
    assert read(tmp_path / "one.json").facts["gpu"] == "NVIDIA H200"


def test_several_runners_of_one_problem_are_all_named(fixtures: Path, tmp_path: Path) -> None:
    raw = document(fixtures / "flashinfer-v1" / "first.json")
    key = next(key for key in raw if "gemm" in key and "(16, 64)" in key)
    mine = raw[key][0]
    sibling = "TiledGemmRunner" if mine == "WideGemmRunner" else "WideGemmRunner"
    raw[key.replace(mine, sibling)] = [sibling, 2]
    (tmp_path / "book.json").write_text(json.dumps(raw))
    book = read(tmp_path / "book.json")
    assert book.facts["problems with entries of several runners"] == "1"
    assert " or " in book.entries[GEMM].choice
    assert len(book.entries[GEMM].trials) == 2


def test_a_file_of_an_older_flashinfer_is_the_same_book_in_another_environment(fixtures: Path) -> None:
    old, new = read(fixtures / "flashinfer-0.6.18" / "first.json"), read(fixtures / "flashinfer-v1" / "first.json")
    found = diff(old, new)
    assert not found.different
    assert [fact.name for fact in found.facts] == ["flashinfer_version", "cutlass_dsl_version"]
    with pytest.raises(UsageError, match="different environments"):
        merge([old, new])


def test_records_and_generation_are_kept(fixtures: Path, tmp_path: Path) -> None:
    raw = document(fixtures / "flashinfer-v1" / "first.json")
    metadata = raw.pop("_metadata")
    generation = raw.pop("_generation")
    whole = {"_metadata": metadata, "_records": {"sglang": {"a": [1, 2.5, None]}}, **raw, "_generation": generation}
    (tmp_path / "book.json").write_text(json.dumps(whole, indent=2))
    write(by_name("flashinfer-v1"), read(tmp_path / "book.json"), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "book.json").read_bytes()


@given(st.dictionaries(st.text(max_size=40).filter(lambda key: not key.startswith("_")), st.integers(), min_size=1))
def test_any_key_is_an_entry_and_comes_back(winners: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, again = Path(name, "book.json"), Path(name, "again.json")
        metadata = {"flashinfer_version": "0.7.2"}
        path.write_text(
            json.dumps({"_metadata": metadata, **{key: ["R", tactic] for key, tactic in winners.items()}}, indent=2)
        )
        book = read(path)
        assert {key: entry.choice for key, entry in book.entries.items()} == {k: f"R[{t}]" for k, t in winners.items()}
        write(by_name("flashinfer-v1"), book, again)
        assert again.read_bytes() == path.read_bytes()


def test_a_store_made_of_a_file_is_the_one_that_flashinfer_makes(fixtures: Path, tmp_path: Path) -> None:
    """Names, manifest, and the structural form of each key, which the v1 file does not have."""
    store = fixtures / "flashinfer-v2" / "store"
    write(by_name("flashinfer-v1"), read(store), tmp_path / "book.json")
    write(by_name("flashinfer-v2"), read(tmp_path / "book.json"), tmp_path / "store")
    made, real = (
        {one.relative_to(root): one.read_bytes() for one in root.rglob("*") if one.is_file()}
        for root in (tmp_path / "store", store)
    )
    assert made == real
    assert all(b'"key_fields"' in data for path, data in made.items() if path.name != "manifest.json")


@pytest.mark.parametrize(
    "key", ["op", "(", "f(1)", "('a', <Enum.b: 1>)", "('a', open)", "1 + 1", "(" * 9000, "('a', 1j)"]
)
def test_a_key_of_anything_but_plain_values_has_no_structural_form(key: str, tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text(json.dumps({"_metadata": {"flashinfer_version": "0.7.2"}, key: ["R", 1]}))
    write(by_name("flashinfer-v2"), read(tmp_path / "book.json"), tmp_path / "store")
    (entry,) = (tmp_path / "store").rglob("entries/*.json")
    assert document(entry) == {"key": key, "runner": "R", "tactic": 1}
    assert [found.choice for found in read(tmp_path / "store").entries.values()] == ["R[1]"]


# ---------------------------------------------------------------- what is refused


_KEY = "('o', 'R', ((1,),), ())"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({_KEY: "R"}, "key ('o', 'R', ((1,),), ()): not [runner, tactic] or [runner, tactic, measuring policy]"),
        ({_KEY: ["R"]}, "not [runner, tactic] or"),
        ({_KEY: ["R", 1, [], 4]}, "not [runner, tactic] or"),
        ({_KEY: [3, 1]}, "the runner is not a name"),
        ({_KEY: ["R", 1, "hot"]}, "the measuring policy is not a list"),
        ({_KEY: ["R", 1, None]}, "the measuring policy is not a list"),
        ({"_metadata": {"flashinfer_version": "0.7.2"}, "_records": []}, "key _records: not an object"),
        ({"_metadata": {"flashinfer_version": "0.7.2"}, "_generation": 3}, "key _generation: not a text"),
    ],
)
def test_a_v1_file_that_flashinfer_could_not_load_is_refused_with_its_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "book.json"
    path.write_text(json.dumps({"_metadata": {"flashinfer_version": "0.7.2"}, **change}))
    with pytest.raises(StoreError) as caught:
        by_name("flashinfer-v1").read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_metadata": {"flashinfer_version": "1"},\n "x": ["R", NaN]}', "line 2, column 13: not JSON"),
        ('\ufeff{"_metadata": {"flashinfer_version": "1"}}', "line 1, column 1: not JSON: a mark of the byte order"),
        ('{"_metadata": {"flashinfer_version": "1"},\n\n "x": ["R", 1]', "line 3, column 15: not JSON"),
        ('{"_metadata": {"flashinfer_version": "1"}, "x": ["R", 1e999]}', "not JSON"),
        (
            '{"_metadata": {"flashinfer_version": "1"}, "x": ["R", 1],\n"x": ["R", 2]}',
            'line 2, column 1: "x" occurs twice',
        ),
        (
            '{"_metadata": {"flashinfer_version": "1"}, "x": ["R", ' + "[" * 90 + "]" * 90 + "]}",
            "nested deeper than 64",
        ),
    ],
)
def test_a_v1_file_that_is_no_json_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(StoreError) as caught:
        open_any(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("tactic"), "tactic: there is none"),
        (lambda entry: entry.update(key=3), "key: it is not a text"),
        (lambda entry: entry.update(key="other"), "FlashInfer looks for this entry in "),
        (lambda entry: entry.update(runner=""), "the runner is not a name"),
        (lambda entry: entry.update(profiling_policy={}), "the measuring policy is not a list"),
    ],
)
def test_an_entry_that_flashinfer_would_not_serve_is_missed_and_the_rest_is_not(
    change: Callable[[dict[str, Any]], object], message: str, fixtures: Path, tmp_path: Path
) -> None:
    shutil.copytree(fixtures / "flashinfer-v2" / "store", tmp_path / "store")
    file = min((tmp_path / "store").rglob("entries/*.json"))
    entry = document(file)
    change(entry)
    file.write_text(json.dumps(entry))
    book = read(tmp_path / "store")
    assert len(book.entries) == 5
    (miss,) = book.misses
    assert str(miss).startswith(f"{file}: entry: ")
    assert message in str(miss)


def test_a_manifest_that_cannot_be_read_is_an_error_and_one_in_another_place_a_miss(
    fixtures: Path, tmp_path: Path
) -> None:
    shutil.copytree(fixtures / "flashinfer-v2" / "store", tmp_path / "store")
    (environment,) = (tmp_path / "store" / "v2").iterdir()
    moved = environment.with_name("0" * 16)
    environment.rename(moved)
    book = read(tmp_path / "store")
    assert [miss.kind for miss in book.misses] == ["environment"]
    assert environment.name in book.misses[0].detail
    (moved / "manifest.json").write_text('{"gpu": ')
    with pytest.raises(StoreError, match=r"manifest\.json: line 1, column 9: not JSON"):
        open_any(tmp_path / "store")


def test_a_store_is_not_written_into_another_one(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UsageError, match="something is there already"):
        write(by_name("flashinfer-v2"), read(fixtures / "flashinfer-v1" / "first.json"), tmp_path / "there")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["there"]


@pytest.mark.parametrize("metadata", [{}, {"flashinfer_version": "0.7.2", "gpu": "*"}, {"flashinfer_version": 7}])
def test_a_v1_file_without_an_environment_does_not_become_a_v2_store(metadata: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text(json.dumps({"_metadata": metadata, _KEY: ["R", 1]}))
    with pytest.raises(UsageError, match="which `_metadata` has to name in full"):
        write(by_name("flashinfer-v2"), read(tmp_path / "book.json"), tmp_path / "store")


# ---------------------------------------------------------------- merging


def test_merging_takes_the_first_books_winner_and_removes_other_runners_of_its_problems(
    fixtures: Path, tmp_path: Path
) -> None:
    folder = fixtures / "flashinfer-v1"
    first, second = read(folder / "first.json"), read(folder / "second.json")
    raw = document(folder / "first.json")
    less = {key: value for key, value in raw.items() if "moe" not in key}
    (tmp_path / "less.json").write_text(json.dumps(less))
    found = merge([read(tmp_path / "less.json"), second])
    assert found.added == (3,)
    for key, entry in found.book.entries.items():
        assert entry.choice == (second if "moe" in key else first).entries[key].choice
        assert entry.trials == ()  # no entry of another runner stands in the winner's way
    write(by_name("flashinfer-v1"), found.book, tmp_path / "merged.json")
    merged = document(tmp_path / "merged.json")
    generation = merged.pop("_generation")
    assert generation == hashlib.sha256(json.dumps(merged, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_books_of_different_machines_are_not_merged(fixtures: Path, tmp_path: Path) -> None:
    raw = document(fixtures / "flashinfer-v1" / "second.json")
    raw["_metadata"]["gpu"] = "NVIDIA\nH200"
    (tmp_path / "other.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=r"different environments \(gpu: unknown and NVIDIA\\nH200\)"):
        merge([read(fixtures / "flashinfer-v1" / "first.json"), read(tmp_path / "other.json")])
