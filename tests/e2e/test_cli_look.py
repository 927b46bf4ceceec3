"""The commands that look: show, env, doctor, help and version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunebook
from tunebook.store import read_run

PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "4")
COMMANDS = ("tune", "show", "generate", "env", "doctor")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]


def test_show_prints_a_cache_and_a_run(tuned: tuple[Path, dict[str, Any]], cli_inside: Cli) -> None:
    home, document = tuned
    implied = json.loads(cli_inside(home, "show", "--json").stdout)
    named = json.loads(cli_inside(home, "show", document["cache"], "--json").stdout)
    assert implied == named
    assert (named["kind"], named["path"], named["misses"]) == ("cache", document["cache"], [])
    assert len(named["verdicts"]) == document["problems"]["seen"]
    run = json.loads(cli_inside(home, "show", document["run"], "--json").stdout)
    assert (run["kind"], run["note"], run["complete"]) == ("run", "the first", True)
    assert run["verdicts"] == named["verdicts"]
    for path, kind in ((document["cache"], "cache"), (document["run"], "run")):
        text = cli_inside(home, "show", path).stdout
        assert text.startswith(f"{path}: {kind}, {document['problems']['seen']} verdicts")
        assert all(key in text for key in named["verdicts"])
        assert "plan for tiny-moe (decode 1, prefill 2)" in text


def test_show_of_a_damaged_cache_shows_the_rest(tuned: tuple[Path, dict[str, Any]], cli_inside: Cli) -> None:
    home, document = tuned
    content = json.loads(Path(document["cache"]).read_text())
    victim = min(content["verdicts"])
    content["verdicts"][victim]["status"] = "\x1b[31mhacked\n"
    Path(document["cache"]).write_text(json.dumps(content))
    shown = json.loads(cli_inside(home, "show", "--json").stdout)
    assert shown["verdicts"].keys() == content["verdicts"].keys() - {victim}
    assert any(victim in miss for miss in shown["misses"])
    text = cli_inside(home, "show").stdout
    assert "\x1b" not in text
    assert "miss: " in text


@pytest.mark.parametrize("content", [None, b"", b"just some text\n", b'{"a": 1}', b"\x00\xff\xfe", b"[1, 2"])
def test_show_of_what_is_neither_is_one_line(
    content: bytes | None, tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in complaint(cli_inside(tmp_path, "show", path, code=1))


def test_env_lists_every_variable_with_its_value_and_source(tmp_path: Path, cli_inside: Cli) -> None:
    variables = {"SGLANG_FLASHINFER_AUTOTUNE_CACHE": "0", "TUNEBOOK_BUDGET_S": "7.5", "TUNEBOOK_BUGDET": "1"}
    document = json.loads(cli_inside(tmp_path, "env", "--json", **variables).stdout)
    rows = {row["name"]: row for row in document["variables"]}
    assert rows.keys() >= {
        "TUNEBOOK_AUTOTUNE",
        "TUNEBOOK_AUTOTUNE_CACHE",
        "TUNEBOOK_CACHE_DIR",
        "TUNEBOOK_BUDGET_S",
        "TUNEBOOK_THREADS",
        "TUNEBOOK_LOG_LEVEL",
    }
    assert rows["TUNEBOOK_AUTOTUNE_CACHE"]["value"] is False
    assert rows["TUNEBOOK_AUTOTUNE_CACHE"]["source"] == "alias SGLANG_FLASHINFER_AUTOTUNE_CACHE"
    assert (rows["TUNEBOOK_BUDGET_S"]["value"], rows["TUNEBOOK_BUDGET_S"]["source"]) == (7.5, "TUNEBOOK_BUDGET_S")
    assert (rows["TUNEBOOK_AUTOTUNE"]["value"], rows["TUNEBOOK_AUTOTUNE"]["source"]) == (True, "default")
    assert rows["TUNEBOOK_CACHE_DIR"]["value"] == str(tmp_path)
    assert document["misspelt"] == {"TUNEBOOK_BUGDET": "TUNEBOOK_BUDGET_S"}
    done = cli_inside(tmp_path, "env", **variables)
    assert "\x1b" not in done.stdout
    assert all(name in done.stdout for name in rows)
    assert "TUNEBOOK_BUDGET_S" in next(line for line in (done.stdout + done.stderr).splitlines() if "BUGDET" in line)


def test_doctor_says_what_can_run_and_why_the_rest_cannot(tmp_path: Path, cli_inside: Cli) -> None:
    home = tmp_path / "new" / "home"
    found = json.loads(cli_inside(home, "doctor", "--json").stdout)
    runners = {(r["op"], r["runner"]): r for r in found["runners"]}
    assert runners["experts", "torch"]["unavailable"] is None
    assert "9.0" in runners["experts", "flashinfer"]["unavailable"]
    assert found["cache"]["path"].startswith(str(home))
    assert found["cache"]["problem"] is None
    assert found["environment"]["hard"]["threads"] == "1"
    assert (found["policy"]["policy"], found["policy"]["warning"]) == ("reuse", None)
    assert {m["name"] for m in found["models"]} >= {"smollm2-moe", "tiny-moe", "granite-1b-moe", "qwen3-moe-8l"}
    text = cli_inside(home, "doctor").stdout
    assert "\x1b" not in text
    assert found["cache"]["path"] in text
    assert "compute capability ≥ 9.0" in text


def test_doctor_warns_of_a_switch_left_off_and_of_a_place_that_cannot_be_written(
    tmp_path: Path, cli_inside: Cli
) -> None:
    (tmp_path / "file").write_text("in the way")
    done = cli_inside(tmp_path / "file", "doctor", "--json", code=1, TUNEBOOK_AUTOTUNE_CACHE="0")
    found = json.loads(done.stdout)
    assert str(tmp_path / "file") in found["cache"]["problem"]
    assert "TUNEBOOK_CACHE_DIR" in found["cache"]["problem"]
    assert "TUNEBOOK_AUTOTUNE_CACHE" in found["policy"]["warning"]


def test_doctor_tells_the_seconds_that_the_last_fresh_start_cost(tmp_path: Path, cli_inside: Cli) -> None:
    narrow = ("--op", "experts", "--only-runner", "torch")
    run = json.loads(cli_inside(tmp_path, *TUNE, *narrow, "--fresh", "--json").stdout)["run"]
    footer = read_run(run).footer
    assert footer is not None
    found = json.loads(cli_inside(tmp_path, "doctor", "--json", TUNEBOOK_AUTOTUNE_CACHE="0").stdout)
    assert f"{footer.seconds:.0f} s" in found["policy"]["warning"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, tmp_path: Path, cli_interpreter: Cli) -> None:
    text = cli_interpreter(tmp_path, *filter(None, [command]), "--help").stdout
    plain = " ".join(re.sub(r"[^\w:;,.\-]+", " ", text).split())
    assert "Usage:" in plain
    assert "Exit codes: 0: done" in plain
    assert "130: interrupted" in plain
    if not command:
        assert all(name in plain for name in COMMANDS)
    else:
        assert "--json" in plain


def test_help_imports_nothing_heavy(tmp_path: Path, cli_environment: Callable[..., dict[str, str]]) -> None:
    code = """
import sys
sys.argv = ["tunebook", "--help"]
from tunebook.cli import main
try:
    main()
finally:
    print(*sorted({"torch", "transformers", "numpy", "msgspec"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=cli_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr.split() == []


def test_version(tmp_path: Path, cli_inside: Cli) -> None:
    assert cli_inside(tmp_path, "--version").stdout == f"tunebook {tunebook.__version__}\n"


def test_show_finds_the_cache_of_a_thread_count(
    tuned: tuple[Path, dict[str, Any]], cli_inside: Cli, complaint: Complaint
) -> None:
    home, document = tuned
    two = {"TUNEBOOK_THREADS": "2"}
    line = complaint(cli_inside(home, "show", code=1, **two))
    assert "no cache yet" in line
    assert "`tunebook tune` makes one" in line
    assert f"there is {document['cache']} (threads: 1 ≠ 2, show it with --threads 1)" in line
    shown = json.loads(cli_inside(home, "show", "--threads", "1", "--json", **two).stdout)
    assert shown["path"] == document["cache"]
    assert json.loads(cli_inside(home, "doctor", "--threads", "1", "--json", **two).stdout)["cache"]["exists"] is True
    assert json.loads(cli_inside(home, "doctor", "--json", **two).stdout)["cache"]["exists"] is False


def test_show_without_any_cache_says_how_to_make_one(tmp_path: Path, cli_inside: Cli, complaint: Complaint) -> None:
    line = complaint(cli_inside(tmp_path / "home", "show", code=1))
    assert str(tmp_path / "home") in line
    assert line.endswith("`tunebook tune` makes one")
    assert not (tmp_path / "home").exists()


def test_show_names_only_a_few_of_many_other_caches(
    tuned: tuple[Path, dict[str, Any]], cli_inside: Cli, complaint: Complaint
) -> None:
    home, document = tuned
    content = json.loads(Path(document["cache"]).read_text())
    for number in range(6):
        content["environment"]["hard"]["device"] = f"cpu {number}"
        other = home / "autotune" / f"{number:016}" / "winners.json"
        other.parent.mkdir()
        other.write_text(json.dumps(content))
    (home / "autotune" / "broken").mkdir()
    (home / "autotune" / "broken" / "winners.json").write_text("no cache")
    line = complaint(cli_inside(home, "show", "--threads", "2", code=1))
    assert line.count("there is ") == 4
    assert "device: cpu 0 ≠ " in line
    assert line.endswith("and 3 more")
