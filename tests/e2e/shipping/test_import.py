"""`tunebook import`: what a bundle holds is checked, what the cache holds stays, and what is not taken is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tunebook as tb
from tunebook.book.bundle import plan_import, take
from tunebook.devices import CudaDevice, device_of
from tunebook.errors import StoreError
from tunebook.records import Environment, Plan
from tunebook.store import Location, publish, read_cache
from tunebook.store.bundles import encode_bundle, open_bundle
from tunebook.store.cache import MAX_CACHE_BYTES

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]
Tree = Callable[[Path], dict[str, tuple[int, int, bytes]]]


def each(document: dict[str, Any], **changes: Any) -> None:
    for verdict in document["verdicts"].values():
        verdict |= changes


def test_another_run_of_the_same_name_is_left_alone(dock: Any) -> None:
    dock.export()
    runs = dock.there.parent / "runs"
    runs.mkdir(parents=True)
    (runs / dock.run.name).write_text("somebody's")
    told = dock.taken()
    (name,) = told["runs"]
    assert name == dock.run.name.replace(".jsonl", "-1.jsonl")
    assert (runs / dock.run.name).read_text() == "somebody's"
    assert (runs / name).read_bytes() == dock.run.read_bytes()
    assert {verdict["run"] for verdict in dock.demo.verdicts(dock.there).values()} == {name}


def test_what_the_cache_holds_stays_unless_it_is_less_well_supported(dock: Any) -> None:
    dock.export()
    keys = [dock.demo.key(size) for size in (1, 2, 4)]
    dock.taken()
    document = json.loads(dock.there.read_text())
    document["verdicts"][keys[0]] |= {"status": "unresolved", "note": "mine"}
    document["verdicts"][keys[1]] |= {"speedup": 1.5, "low": 1.4, "high": 1.6, "note": "mine"}
    document["verdicts"][keys[2]]["offered"]["quick"]["version"] = "0"
    document["verdicts"]["other::op|||M≤1"] = {**document["verdicts"][keys[0]], "problem": "other::op|||M≤1"}
    dock.there.write_text(json.dumps(document))
    dock.change(lambda bundled: each(bundled, status="proven"))
    told = dock.taken()
    assert (told["verdicts"], told["imported"]) == ({keys[0]: "quick[block=1]"}, True)
    assert {refusal["what"]: refusal["why"] for refusal in told["refused"]} == {
        keys[1]: "the cache's own stays: as well supported; it counts as the later one",
        keys[2]: "the cache's own stays: what was offered differs: quick; it counts as the later one",
    }
    now = dock.demo.verdicts(dock.there)
    assert now.pop(keys[0])["status"] == "proven"
    assert now == {key: verdict for key, verdict in document["verdicts"].items() if key != keys[0]}


def test_what_was_published_since_it_was_looked_at_is_not_replaced(dock: Any) -> None:
    dock.export()
    environment = device_of("cpu").environment()
    location = Location.of(environment, dock.other / "mine.json")
    chosen = plan_import(dock.bundle, environment, location)
    mine = msgspec.structs.replace(next(iter(chosen.verdicts.values())), note="mine")
    assert publish(location, environment, {mine.problem: mine}, {}).written
    with pytest.raises(
        StoreError, match=r"another process has changed it since it was looked at .*nothing was imported"
    ):
        take(chosen)
    assert dict(read_cache(location.cache, environment).verdicts) == {mine.problem: mine}
    assert not location.runs.exists()


def plan(**fields: Any) -> dict[str, Any]:
    return msgspec.to_builtins(Plan(model="m", fingerprint="f", tactics={}, **fields))


def test_a_plan_goes_in_where_there_is_none_that_was_compared(dock: Any) -> None:
    dock.export()
    dock.change(lambda document: document["plans"].update(f=plan(run="a")))
    assert dock.taken()["plans"] == {"f": "m"}
    dock.change(lambda document: document["plans"].update(f=plan(run="b")))
    assert dock.taken()["same"] == 4  # where its run lies is no difference
    dock.change(lambda document: document["plans"].update(f=plan(verified=True)))
    assert dock.taken()["plans"] == {"f": "m"}
    dock.change(lambda document: document["plans"].update(f=plan(left_out=3, verified=True)))
    assert dock.taken()["refused"][0] == {"what": "plan for m", "why": "the cache's own stays"}
    assert "left_out" not in json.loads(dock.there.read_text())["plans"]["f"]


def test_tactics_that_are_not_offered_are_neither_taken_nor_served(
    dock: Any, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forge(document: dict[str, Any]) -> None:
        member = {"tactic": "quick[block=7]", "ratio": 1.0, "low": 1.0, "high": 1.0}
        each(document, winner="quick[block=7]", frontier=[member])
        document["verdicts"][dock.demo.key(1)] |= {"speedup": 1e300, "high": 1e300}

    dock.export()
    dock.change(forge)
    told = dock.taken()
    assert (told["verdicts"], told["imported"]) == ({}, False)
    why = {refusal["what"]: refusal["why"] for refusal in told["refused"]}
    assert "the op does not offer this tactic" in why[dock.demo.key(2)]
    assert "beyond all measure" in why[dock.demo.key(1)]
    assert why[f"run {dock.run.name}"] == "nothing that is taken comes from it"
    assert not dock.other.exists()

    restart()
    scale = dock.demo.op()
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(dock.other))
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", str(dock.bundle))
    with tb.autotune(tune_mode=False):
        assert scale() == "default"


def test_an_op_that_is_not_declared_is_taken_and_checked_when_it_is(dock: Any, clean_ops: None) -> None:
    from tunebook.dispatch import OPS

    dock.export()
    del OPS[dock.demo.OP]
    assert dock.taken()["undeclared"] == [dock.demo.OP]
    assert len(read_cache(dock.there, dock.environment).verdicts) == 3


def test_runs_that_are_damaged_or_of_elsewhere_are_not_taken(dock: Any) -> None:
    dock.export()
    content = dock.run.read_bytes()
    spare = "winners.20200101_000000.jsonl"
    for runs, says in (
        ({dock.run.name: b"nothing\n"}, "not a run file"),
        (
            {dock.run.name: content.replace(b'"threads":"1"', b'"threads":"9"')},
            "of another environment: threads: 9 ≠ 1",
        ),
        ({dock.run.name: content, spare: content}, "nothing that is taken comes from it"),
    ):
        shutil.rmtree(dock.other, ignore_errors=True)
        dock.change(lambda document: None, runs)
        told = dock.taken()
        (refusal,) = told["refused"]
        assert refusal["what"] == f"run {spare if spare in runs else dock.run.name}"
        assert says in refusal["why"]
        assert len(told["verdicts"]) == 3
        assert told["runs"] == ([dock.run.name] if spare in runs else [])


def test_a_bundle_of_another_environment_is_refused_by_field(dock: Any, complaint: Complaint) -> None:
    dock.export()
    dock.change(lambda document: document["environment"]["hard"].update(threads="96", isa="sse"))
    line = complaint(dock.take("--yes", code=1))
    assert "made on another machine (here ≠ there): isa: " in line
    assert "threads: 1 ≠ 96; nothing of it would serve here. Where it does, name it in TUNEBOOK_CACHE_PATH" in line
    assert not dock.other.exists()


def test_winners_of_a_gpu_go_into_the_cache_of_that_gpu(
    dock: Any, monkeypatch: pytest.MonkeyPatch, complaint: Complaint
) -> None:
    """The device is the bundle's kind, or the one that is named; the GPU itself is a stand-in."""
    gpu = Environment(hard={"device": "cuda NVIDIA H100", "capability": "9.0"})
    dock.export()
    dock.change(lambda document: document.update(environment={"hard": gpu.hard, "soft": {}}))
    line = complaint(dock.take("--yes", code=2))
    assert f"{dock.bundle}: its winners are for cuda NVIDIA H100, and cuda:0 cannot be used here: " in line
    assert "made on another machine" in complaint(dock.take("--yes", "--device", "cpu", code=1))
    assert "device tpu is neither cpu nor cuda" in complaint(dock.take("--yes", "--device", "tpu", code=2))
    asked = []

    def environment(device: CudaDevice) -> Environment:
        asked.append(device.name)
        return gpu

    monkeypatch.setattr(CudaDevice, "environment", environment)
    taken = dock.taken()
    there = dock.other / "autotune" / gpu.digest / "winners.json"
    assert taken["cache"] == str(there)
    assert len(taken["verdicts"]) == len(json.loads(there.read_text())["verdicts"]) > 0
    dock.taken("--device", "cuda:1")
    assert asked == ["cuda:0", "cuda:1"]


def test_errors_of_import_are_one_line_and_change_nothing(dock: Any, tmp_path: Path, complaint: Complaint) -> None:
    dock.export()
    assert "there is no terminal to ask on; say --yes" in complaint(dock.take(code=2))
    assert "say --yes as well" in complaint(dock.take("--json", code=2))
    good = dock.bundle.read_bytes()
    for data, says in (
        (good[:-5], "not a bundle: it does not end as a bundle does"),
        (b"", "not a bundle: it is cut off"),
        (encode_bundle(b"[]", {}), "not a cache"),
        (encode_bundle(b'{"schema": 99}', {}), "schema 99 is newer"),
        (good.replace(b'"quick', b'"sluck', 1), "damaged bundle: winners.json: Bad CRC-32"),
    ):
        dock.bundle.write_bytes(data)
        assert says in complaint(dock.take("--yes", code=1))
    dock.bundle.unlink()
    assert "No such file or directory" in complaint(dock.take("--yes", code=1))
    dock.bundle.write_bytes(good)
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps({"schema": 1, "environment": {"hard": {"device": "x"}}, "verdicts": {}}))
    before = foreign.read_bytes()
    assert "nothing is imported" in complaint(dock.take("--yes", "--cache", foreign, code=1))
    assert foreign.read_bytes() == before
    newer = tmp_path / "newer.json"
    newer.write_text('{"schema": 99}')
    assert "nothing was imported" in dock.take("--yes", "--cache", newer, code=1).stderr
    assert newer.read_text() == '{"schema": 99}'
    assert not dock.other.exists()


def test_a_run_that_cannot_be_kept_is_said_with_exit_code_3(dock: Any, tmp_path: Path) -> None:
    dock.export()
    dock.there.parent.mkdir(parents=True)
    (dock.there.parent / "runs").symlink_to(tmp_path)
    before = sorted(tmp_path.iterdir())
    text = dock.take("--yes", code=3).stdout
    assert "was not written: it is a symbolic link, and nothing is written through one" in text
    assert "imported: 3 winners, 0 plans, 0 runs" in text
    assert sorted(tmp_path.iterdir()) == before
    assert len(read_cache(dock.there, dock.environment).verdicts) == 3


MUTATED = st.lists(
    st.tuples(
        st.integers(0, 10**4),
        st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
                  st.sampled_from(["../../x", "/etc/passwd", "quick[block=7]", "default", "proven", {}, []])),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


#: A byte is flipped in one of three: else nothing but the archive's own sum is tested.
FLIPS: st.SearchStrategy[list[tuple[int, int]]] = st.one_of(
    st.just([]), st.just([]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=MUTATED,
    cut=st.integers(0, 200),
    flips=FLIPS,
)
def test_whatever_a_bundle_holds_nothing_outside_is_touched(
    dock: Any, changes: list[tuple[int, Any]], cut: int, flips: list[tuple[int, int]], tmp_path: Path, tree_of: Tree
) -> None:
    """Fields replaced inside a sound archive, runs cut off, or bytes flipped: one line, or an import in its own place alone."""
    if not dock.bundle.exists():
        dock.export()
        shutil.copy(dock.bundle, tmp_path / "sound")
    shutil.rmtree(tmp_path / "into", ignore_errors=True)
    with open_bundle(tmp_path / "sound") as bundle:
        document = json.loads(bundle.cache(MAX_CACHE_BYTES))
        runs = {name: bundle.run(name)[: -cut or None] for name in bundle.runs}
    for place, value in changes:
        places = list(slots(document))
        holder, name = places[place % len(places)]
        holder[name] = value
    data = bytearray(encode_bundle(json.dumps(document).encode(), runs))
    for at, byte in flips:
        data[at % len(data)] = byte
    dock.bundle.write_bytes(data)
    before = tree_of(dock.home), sorted(os.listdir(tmp_path))
    location = Location.of(dock.environment, tmp_path / "into" / "mine.json")
    said = ""
    try:
        found = plan_import(dock.bundle, dock.environment, location)
        take(found)
        assert all(verdict.problem == key for key, verdict in found.verdicts.items())
    except StoreError as error:
        said = str(error)
    assert said.isprintable()
    assert (tree_of(dock.home), sorted({*os.listdir(tmp_path)} - {"into"})) == before
    assert {path.suffix for path in (tmp_path / "into").rglob("*") if path.is_file()} <= {".json", ".jsonl", ".lock"}


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a document: what holds it, and its name or number there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in list(pairs):
        yield value, name
        yield from slots(inner)
