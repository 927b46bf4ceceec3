"""TUNEBOOK_CACHE_PATH: what was shipped serves, is named wherever winners are shown, and is left as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine import ModelRunner, requests
from tunebook.store import pins_path, read_cache

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]
Tree = Callable[[Path], dict[str, tuple[int, int, bytes]]]
TUNE = ("tune", "tiny-moe", "--decode", "1", "--prefill", "2", "--budget", "4")


def test_a_process_serves_from_it_and_keeps_nothing_of_it(
    dock: Any, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dock.export()
    dock.bundle.chmod(0o444)
    before = dock.bundle.stat().st_mtime_ns
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(dock.other))
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", str(dock.bundle))
    restart()
    scale = dock.demo.op()
    block = scale.tune()
    assert (block.outcome.cached, block.outcome.tuned, block.run) == (3, 0, None)
    assert not scale.calls["quick"]
    assert scale() == "quick"
    assert not dock.other.exists()
    with monkeypatch.context() as patch:
        patch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "0")
        restart()
        assert dock.demo.op().tune().outcome.tuned == 3
    # With a pin of the user's own, which goes before it: pins are read beside the user's own cache alone.
    pins_path(dock.bundle).write_text('[pins]\n"demo::scale" = "default"\n')
    restart()
    scale = dock.demo.op()
    with tb.autotune(tune_mode=False):
        assert scale() == "quick"
    pins_path(dock.there).parent.mkdir(parents=True, exist_ok=True)
    pins_path(dock.there).write_text('[pins]\n"demo::scale" = "default"\n')
    restart()
    scale = dock.demo.op()
    with tb.autotune(tune_mode=False):
        assert scale() == "default"
    assert dock.bundle.stat().st_mtime_ns == before


def test_show_and_doctor_name_where_each_winner_comes_from(dock: Any, tmp_path: Path, cli_inside: Cli) -> None:
    dock.export()
    absent = tmp_path / "absent.json"
    path = {"TUNEBOOK_CACHE_PATH": f"{absent}:{dock.bundle}"}
    found = json.loads(cli_inside(dock.other, "show", "--json", **path).stdout)
    assert found["origins"] == dict.fromkeys((dock.demo.key(size) for size in (1, 2, 4)), str(dock.bundle))
    assert found["verdicts"].keys() == found["origins"].keys()
    assert [(entry["path"], entry["verdicts"]) for entry in found["search_path"]] == [
        (str(absent), 0),
        (str(dock.bundle), 3),
    ]
    missed = f"TUNEBOOK_CACHE_PATH, {absent}: unreadable: there is no such file"
    assert found["search_path"][0]["problem"] == missed
    assert missed in found["misses"]

    text = cli_inside(dock.other, "show", **path).stdout
    assert f"3 of the winners come from {dock.bundle} (TUNEBOOK_CACHE_PATH)" in text
    assert f"miss: {missed}" in text
    assert any(line.rstrip().endswith("b.tunebook") for line in text.splitlines() if line.startswith("demo::scale"))
    one = cli_inside(dock.other, "show", "--problem", dock.demo.key(2), **path).stdout
    assert f"from {dock.bundle} (TUNEBOOK_CACHE_PATH)" in one

    seen = json.loads(cli_inside(dock.other, "doctor", "--json", **path).stdout)
    assert seen["search_path"] == found["search_path"]
    text = cli_inside(dock.other, "doctor", **path).stdout
    assert f"path:   {dock.bundle} (3 verdicts, 0 plans, read only)" in text
    assert missed in text

    # The user's own goes before it, and a file that is named is shown alone.
    dock.taken()
    assert json.loads(cli_inside(dock.other, "show", "--json", **path).stdout)["origins"] == {}
    named = json.loads(cli_inside(dock.other, "show", dock.bundle, "--json", **path).stdout)
    assert (named["kind"], len(named["verdicts"]), named["search_path"]) == ("cache", 3, [])


def test_show_without_any_cache_says_what_is_wrong_with_the_path(
    tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    line = complaint(cli_inside(tmp_path / "home", "show", code=1, TUNEBOOK_CACHE_PATH=str(tmp_path / "absent")))
    assert "this environment has no cache yet" in line
    assert f"TUNEBOOK_CACHE_PATH, {tmp_path / 'absent'}: unreadable: there is no such file" in line


def test_another_process_serves_from_a_read_only_directory(
    first: tuple[Path, dict[str, Any], str], cli: Cli, cli_inside: Cli, tmp_path: Path, tree_of: Tree
) -> None:
    """A cache directory as an image ships it, without permission to write; root may, so what is in it is compared."""
    ship, home, absent = tmp_path / "opt" / "tunebook", tmp_path / "home", tmp_path / "absent"
    shutil.copytree(first[0], ship)
    for path in (ship, *ship.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, variables = tree_of(ship), {"TUNEBOOK_CACHE_PATH": f"{ship}:{absent}"}
    try:
        done = cli(home, *TUNE, "--json", **variables)
        report = json.loads(done.stdout)
        assert report["problems"]["tuned"] == 0
        assert report["problems"]["cached"] == report["problems"]["seen"] == first[1]["problems"]["seen"]
        assert "answers everything" in report["why"]
        assert report["plan"]["tactics"] == first[1]["plan"]["tactics"]
        (cache,) = ship.glob("autotune/*/winners.json")
        assert report["origins"] == dict.fromkeys(read_cache(cache, None).verdicts, str(cache))
        (warning,) = (line for line in done.stderr.splitlines() if "TUNEBOOK_CACHE_PATH" in line)
        assert warning.startswith("WARNING")
        assert f"{absent}: unreadable: there is no such file" in warning
        text = cli_inside(home, *TUNE, **variables).stdout
        assert f"{report['problems']['seen']} of the winners come from {cache} (TUNEBOOK_CACHE_PATH)" in text
        assert not list(home.rglob("winners*"))
        assert tree_of(ship) == before
    finally:
        for path in (ship, *ship.rglob("*")):
            path.chmod(0o755)


def test_reload_sees_what_has_been_shipped_since(
    first: tuple[Path, dict[str, Any], str], tmp_path: Path, clean_ops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, home = first[1]["plan"], tmp_path / "home"
    serves = {key: name for key, name in plan["tactics"].items() if name != "default"} if plan["active"] else {}
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(home))
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", str(tmp_path / "shipped"))
    with ModelRunner("tiny-moe", threads=1) as runner:
        assert runner.autotune(policy="replay", wanted=requests((1,), (2,))).plan is None
        missed = runner.reload()
        assert missed.changed == {}
        assert any(str(tmp_path / "shipped") in miss for miss in missed.misses)
        shutil.copytree(first[0], tmp_path / "shipped")
        reloaded = runner.reload()
        assert {key: now for key, (_, now) in reloaded.changed.items()} == serves
        assert runner.plan is not None
        assert runner.plan.tactics == plan["tactics"]
        with torch.inference_mode():
            runner.loaded.model(torch.arange(6).reshape(1, 6))
    assert not home.exists()
