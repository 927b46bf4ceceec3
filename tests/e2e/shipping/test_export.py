"""`tunebook export`: a bundle carries winners, plans and runs into another home, and says what it does not carry."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.records import Plan
from tunebook.store import read_cache, read_run
from tunebook.store.bundles import open_bundle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]
Tree = Callable[[Path], dict[str, tuple[int, int, bytes]]]
TUNE = ("tune", "tiny-moe", "--decode", "1", "--prefill", "2", "--budget", "4")


def test_a_bundle_carries_winners_and_runs_into_another_home(dock: Any, tree_of: Tree) -> None:
    told = json.loads(dock.export("--json").stdout)
    first = dock.bundle.read_bytes()
    assert (told["verdicts"], told["supported"], told["plans"], told["runs"], told["notes"]) == (
        3,
        3,
        0,
        [dock.run.name],
        [],
    )
    assert told["environment"]["digest"] == dock.environment.digest
    assert told["bytes"] == len(first)
    dock.export("--force")
    assert dock.bundle.read_bytes() == first

    before = tree_of(dock.home)
    text = dock.take("--yes").stdout
    assert "takes 3 winners, 0 plans, 1 runs" in text
    assert "imported: 3 winners, 0 plans, 1 runs" in text
    assert tree_of(dock.home) == before
    assert json.loads(dock.there.read_text())["verdicts"] == dock.demo.verdicts()
    assert (dock.there.parent / "runs" / dock.run.name).read_bytes() == dock.run.read_bytes()
    assert dock.run.name in dock._cli(dock.other, "history").stdout

    after = tree_of(dock.other)
    again = dock.taken()
    assert (again["imported"], again["same"], again["verdicts"]) == (False, 3, {})
    assert "there is nothing to import" in dock.take("--yes").stdout
    assert tree_of(dock.other) == after


def test_export_says_what_is_not_in_it(dock: Any, tmp_path: Path) -> None:
    assert json.loads(dock.export("--runs", 0, "--json").stdout)["notes"] == ["1 older runs are not in it"]
    with open_bundle(dock.bundle) as bundle:
        assert bundle.runs == ()
    content = dock.run.read_bytes()
    dock.run.write_bytes(content.replace(b'"threads":"1"', b'"threads":"9"'))
    (note,) = json.loads(dock.export("--force", "--json").stdout)["notes"]
    assert f"run {dock.run.name} is not in it: it is of another environment: threads: 9 ≠ 1" in note
    dock.run.write_bytes(b"no run\n")
    assert "not a run file" in dock.export("--force").stdout
    dock.run.unlink()
    told = json.loads(dock.export("--force", "--json").stdout)
    assert "there is no such file" in told["notes"][0]
    assert (told["verdicts"], told["supported"], told["runs"]) == (3, 0, [])

    document = json.loads(dock.demo.cache().read_text())
    for verdict, name in zip(document["verdicts"].values(), ("../../etc/passwd", "x.jsonl"), strict=False):
        verdict["run"] = name
    first = next(iter(document["verdicts"]))
    document["verdicts"]["o||f|M≤1"] = {"problem": "o||f|M≤1"}
    document["plans"]["f"] = msgspec.to_builtins(
        Plan(model="m", fingerprint="f", tactics={first: "default"}, pinned=(first,))
    )
    dock.demo.cache().write_text(json.dumps(document))
    notes = json.loads(dock.export("--force", "--json").stdout)["notes"]
    assert any(
        "run ../../etc/passwd is not in it: it is not named as the runs of this cache are" in note for note in notes
    )
    assert any("1 entries of the cache cannot be read" in note for note in notes)
    assert any("1 problems of the plan for m were decided by pins, which are not exported" in note for note in notes)


def test_errors_of_export_are_one_line(dock: Any, tmp_path: Path, complaint: Complaint) -> None:
    assert "--runs -1 is not a number of runs" in complaint(dock.export("--runs", -1, code=2))
    assert "there is no such file" in complaint(dock.export("--cache", tmp_path / "absent.json", code=1))
    dock.bundle.write_bytes(b"somebody's")
    assert "is there already; name another file, or say --force" in complaint(dock.export(code=2))
    assert dock.bundle.read_bytes() == b"somebody's"
    dock.demo.cache().write_text(json.dumps({**json.loads(dock.demo.cache().read_text()), "verdicts": {}}))
    assert "it holds nothing that could be exported" in complaint(dock.export("--force", code=1))
    assert dock.bundle.read_bytes() == b"somebody's"
    dock.bundle = tmp_path / "no" / "folder" / "b.tunebook"
    shutil.copytree(dock.home, tmp_path / "spare")
    dock.demo.op().tune()
    assert "was not written: No such file or directory; name another place with -o" in complaint(dock.export(code=1))


def test_the_default_name_is_the_environments(dock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dock._cli(dock.home, "export")
    path = tmp_path / f"{dock.environment.digest}.tunebook"
    with open_bundle(path) as bundle:
        assert bundle.runs == (dock.run.name,)


def test_a_cache_of_another_name_goes_into_one_of_another_name(
    dock: Any, tmp_path: Path, restart: Callable[[], None]
) -> None:
    """Runs are named after the cache that they lie beside, and results name their run."""
    restart()
    dock.demo.op().tune(cache=tmp_path / "tuned.json")
    (run,) = dock.demo.runs(tmp_path / "tuned.json")
    dock.export("--cache", tmp_path / "tuned.json")
    with open_bundle(dock.bundle) as bundle:
        (inside,) = bundle.runs
    assert inside == run.name.replace("tuned", "winners")
    into = tmp_path / "elsewhere" / "mine.json"
    dock.taken("--cache", into)
    (there,) = (into.parent / "runs").iterdir()
    assert there.name == run.name.replace("tuned", "mine")
    assert there.read_bytes() == run.read_bytes()
    assert {verdict.run for verdict in read_cache(into, dock.environment).verdicts.values()} == {there.name}


def test_a_model_and_its_plan_are_shipped_as_a_bundle(
    first: tuple[Path, dict[str, Any], str], cli_inside: Cli, tmp_path: Path
) -> None:
    told = json.loads(cli_inside(first[0], "export", "-o", tmp_path / "b.tunebook", "--json").stdout)
    assert (told["plans"], told["supported"]) == (1, told["verdicts"])
    assert told["runs"] == [Path(first[1]["run"]).name]
    with zipfile.ZipFile(tmp_path / "b.tunebook") as archive:
        assert archive.namelist() == ["winners.json", f"runs/{told['runs'][0]}"]
    home = tmp_path / "home"
    taken = json.loads(cli_inside(home, "import", tmp_path / "b.tunebook", "--yes", "--json").stdout)
    assert (len(taken["verdicts"]), list(taken["plans"].values()), taken["refused"]) == (
        told["verdicts"],
        ["tiny-moe"],
        [],
    )
    report = json.loads(cli_inside(home, *TUNE, "--json").stdout)
    assert (report["problems"]["tuned"], report["origins"]) == (0, {})
    assert report["plan"]["tactics"] == first[1]["plan"]["tactics"]
    (run,) = home.glob("autotune/*/runs/*.jsonl")
    assert read_run(run).header.note == "the first"
