"""The command line as a user types it: documents, tables, exit codes, errors of one line, interruption."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunebook
from tunebook.store import read_run

PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "4")
COMMANDS = ("tune", "show", "generate", "env", "doctor")
RUN_NAME = re.compile(r"winners\.\d{8}_\d{6}(-\d+)?\.jsonl")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def first(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """One tuning that many tests look at: its cache directory, its document, and what it logged."""
    home = tmp_path_factory.mktemp("tuned") / "home"
    done = cli(home, *TUNE, "--note", "the first", "--json")
    return home, json.loads(done.stdout), done.stderr


@pytest.fixture
def tuned(first: tuple[Path, dict[str, Any], str], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of that cache directory that the test may change, and the document of the tuning, paths adapted."""
    home, document, _ = first
    shutil.copytree(home, tmp_path / "home")
    moved = {key: document[key].replace(str(home), str(tmp_path / "home")) for key in ("cache", "run")}
    return tmp_path / "home", {**document, **moved}


def files(home: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in home.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("tunebook: error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0], "something follows the error"
    assert done.stdout == ""
    return lines[0]


# tune


def test_the_document_of_a_tuning(first: tuple[Path, dict[str, Any], str]) -> None:
    home, document, _ = first
    assert document["model"] == "tiny-moe"
    assert document["policy"] == "reuse"
    assert re.fullmatch("[0-9a-f]{16}", document["environment"]["digest"])
    problems = document["problems"]
    assert problems.keys() >= {"seen", "cached", "tuned", "kept_default", "rejected_tactics"}
    assert problems["cached"] == 0
    assert problems["seen"] == problems["tuned"] + problems["left_out"]
    assert problems["tuned"] >= 1
    assert document["seconds"].keys() >= {"load", "collect", "tune", "prepare", "verify"}
    assert all(isinstance(value, float) and value >= 0 for value in document["seconds"].values())
    assert document["plan"]["verified"] is True
    assert isinstance(document["plan"]["active"], bool)
    assert len(document["plan"]["tactics"]) == problems["seen"]
    for phase in document["phases"]:
        assert phase.keys() >= {"phase", "batch", "tokens", "default_ms", "tuned_ms"}
        assert 0 < phase["speedup_low"] <= phase["speedup"] <= phase["speedup_high"]
    if document["phases"]:  # empty where the default won everywhere
        assert [(p["phase"], p["batch"], p["tokens"]) for p in document["phases"]] == [
            ("decode", 1, 1),
            ("prefill", 1, 2),
        ]
        overall = document["overall"]
        assert 0 < overall["speedup_low"] <= overall["speedup"] <= overall["speedup_high"]
        product = document["phases"][0]["speedup"] * document["phases"][1]["speedup"]
        assert overall["speedup"] == pytest.approx(product**0.5, rel=0.2)
    assert document["published"] is True
    cache, run = Path(document["cache"]), Path(document["run"])
    assert cache == home / "autotune" / document["environment"]["digest"] / "winners.json"
    assert cache.is_file()
    assert run.parent == cache.parent / "runs"
    assert RUN_NAME.fullmatch(run.name)
    assert read_run(run).header.note == "the first"


def test_overall_is_the_mean_of_the_phases_log_speedups(first: tuple[Path, dict[str, Any], str]) -> None:
    import math

    _, document, _ = first
    if document["overall"] is not None:
        logs = [math.log(phase["speedup"]) for phase in document["phases"]]
        assert math.log(document["overall"]["speedup"]) == pytest.approx(sum(logs) / len(logs), abs=1e-6)


def test_the_log_of_a_tuning_names_cache_and_run(first: tuple[Path, dict[str, Any], str]) -> None:
    _, document, log = first
    assert f"runs with the cache at {document['cache']}" in log
    assert re.search(rf"autotune completed: \d+ problems.* in \d+\.\d s.*{re.escape(document['run'])}", log)


def test_a_second_run_starts_from_the_cache(tuned: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    home, document = tuned
    before = files(home)
    done = cli(home, *TUNE, "--json")
    again = json.loads(done.stdout)
    assert again["problems"]["tuned"] == 0
    assert again["problems"]["cached"] == again["problems"]["seen"] == document["problems"]["seen"]
    assert again["run"] is None
    assert again["plan"]["tactics"] == document["plan"]["tactics"]
    assert again["phases"] == document["phases"], "what was proven is still known"
    assert files(home) == before


@pytest.mark.parametrize("how", ["--fresh", "TUNEBOOK_AUTOTUNE_CACHE"])
def test_fresh_leaves_the_cache_byte_for_byte(how: str, tuned: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    home, document = tuned
    before = files(home)
    flag, variables = ((how,), {}) if how.startswith("--") else ((), {how: "0"})
    narrow = ("--op", "experts", "--only-runner", "torch")
    done = cli(home, *TUNE, *narrow, "--json", *flag, **variables)
    fresh = json.loads(done.stdout)
    assert fresh["policy"] == "fresh"
    assert fresh["problems"]["cached"] == 0
    assert fresh["problems"]["tuned"] > 0
    assert fresh["published"] is False
    after = files(home)
    new = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before
    assert [home / name for name in new] == [Path(fresh["run"])]
    assert fresh["run"] != document["run"]
    assert RUN_NAME.fullmatch(Path(fresh["run"]).name)
    assert "reuse is off" in done.stderr
    assert re.search(r"cost \d+\.\d s", done.stderr)
    assert how in done.stderr or how == "--fresh"


def test_the_report_for_people_is_plain_when_piped(tuned: tuple[Path, dict[str, Any]], cli_inside: Cli) -> None:
    home, document = tuned
    done = cli_inside(home, *TUNE)
    assert "\x1b" not in done.stdout + done.stderr
    assert not re.search("[─━┃│╭]", done.stdout)
    seen = document["problems"]["seen"]
    assert f"{seen} problems: {seen} from the cache, 0 tuned" in done.stdout
    assert f"cache: {document['cache']}" in done.stdout
    assert re.search(r"^run: +none", done.stdout, re.MULTILINE)


def test_replay_on_an_empty_cache_tunes_nothing_and_writes_nothing(tmp_path: Path, cli_inside: Cli) -> None:
    document = json.loads(cli_inside(tmp_path / "home", *TUNE, "--replay", "--json").stdout)
    assert document["policy"] == "replay"
    assert (document["problems"]["tuned"], document["run"], document["published"]) == (0, None, False)
    assert not (tmp_path / "home").exists()


def test_a_cache_of_another_machine_is_left_alone_and_the_result_is_in_the_run_file(
    tuned: tuple[Path, dict[str, Any]], tmp_path: Path, cli_inside: Cli
) -> None:
    home, document = tuned
    content = json.loads(Path(document["cache"]).read_text())
    content["environment"]["hard"]["isa"] = "another"
    cache = tmp_path / "theirs.json"
    cache.write_text(json.dumps(content))
    before = cache.read_bytes()
    done = cli_inside(home, *TUNE, "--op", "experts", "--only-runner", "torch", "--cache", cache, "--json", code=3)
    result = json.loads(done.stdout)
    assert cache.read_bytes() == before
    assert result["published"] is False
    assert "isa" in result["not_published"]
    assert any("isa" in miss and str(cache) in miss for miss in result["misses"])
    assert Path(result["run"]).parent == tmp_path / "runs"
    assert read_run(result["run"]).verdicts


# show, env, doctor, help


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
def test_show_of_what_is_neither_is_one_line(content: bytes | None, tmp_path: Path, cli_inside: Cli) -> None:
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
def test_help(command: str, tmp_path: Path, cli: Cli) -> None:
    text = cli(tmp_path, *filter(None, [command]), "--help").stdout
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


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--decode", "1,x"), 2, ("--decode", "'x'", "1,4,16")),
        (("--decode", "0"), 2, ("--decode", "'0'")),
        (("--prefill", "-5"), 2, ("--prefill", "'-5'")),
        (("--prefill", "1.5"), 2, ("--prefill", "'1.5'")),
        (("--decode", "", "--prefill", " , "), 2, ("no phase",)),
        (("--fresh", "--replay"), 2, ("--fresh", "--replay")),
        (("--budget", "-1"), 2, ("--budget", "-1")),
        (("--budget", "0"), 2, ("--budget", "0")),
        (("--budget", "nan"), 2, ("--budget", "nan")),
        (("--threads", "0"), 2, ("threads", "0")),
        (("--threads", "-3"), 2, ("threads", "-3")),
        (("--with", "no/such_file.py"), 1, ("no/such_file.py", "no such file")),
        (("--op", "conv"), 2, ("'conv'", "linear")),
        (("--skip-op", "conv"), 2, ("'conv'", "linear")),
        (("--only-runner", "cutlass"), 2, ("'cutlass'", "torch")),
        (("--cache", "/"), 2, ("/", "directory")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path, cli_inside: Cli
) -> None:
    done = cli_inside(tmp_path / "home", "tune", "tiny-moe", *PHASES, *arguments, code=code, TUNEBOOK_LOG_LEVEL="ERROR")
    line = complaint(done)
    assert all(word in line for word in words), line
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "arguments", [("--threads", "many"), ("--budget", "soon"), ("--frehs",), ("tiny-moe", "too-much")]
)
def test_what_cannot_be_parsed_is_exit_code_2(arguments: tuple[str, ...], tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path, "tune", "tiny-moe", *arguments, code=2)
    assert arguments[0].lstrip("-") in done.stderr or arguments[-1] in done.stderr
    assert done.stdout == ""


def test_no_command_and_an_unknown_one(tmp_path: Path, cli_inside: Cli) -> None:
    assert "Usage" in cli_inside(tmp_path, code=2).stdout
    assert "tone" in cli_inside(tmp_path, "tone", code=2).stderr


def test_an_unknown_model_names_the_nearest(tmp_path: Path, cli_inside: Cli) -> None:
    line = complaint(cli_inside(tmp_path / "home", "tune", "tiny-mo", code=1))
    assert "'tiny-mo'" in line
    assert "did you mean 'tiny-moe'" in line
    line = complaint(cli_inside(tmp_path / "home", "tune", tmp_path, code=1))
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TUNEBOOK_AUTOTUNE", "perhaps"),
        ("TUNEBOOK_AUTOTUNE_CACHE", "2"),
        ("TUNEBOOK_BUDGET_S", "soon"),
        ("TUNEBOOK_BUDGET_S", "-1"),
        ("TUNEBOOK_THREADS", "0"),
        ("TUNEBOOK_LOG_LEVEL", "LOUD"),
        ("TUNEBOOK_MEMORY_LIMIT_GB", "lots"),
    ],
)
def test_a_wrong_variable_is_one_line_and_env_still_works(
    name: str, value: str, tmp_path: Path, cli_inside: Cli
) -> None:
    line = complaint(cli_inside(tmp_path, "tune", "tiny-moe", code=1, **{name: value}))
    assert all(word in line for word in (name, repr(value), "accepted"))
    assert value in cli_inside(tmp_path, "env", **{name: value}).stdout


def test_a_misspelt_variable_is_warned_about_with_the_nearest_name(tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path, "show", tmp_path / "absent", code=1, TUNEBOOK_AUTOTUNE_CACH="0", tunebook_threads="2")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert any("TUNEBOOK_AUTOTUNE_CACH " in line and "TUNEBOOK_AUTOTUNE_CACHE?" in line for line in warnings)
    assert any("tunebook_threads" in line and "TUNEBOOK_THREADS?" in line for line in warnings)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def kernel(:\n", (":1", "SyntaxError")),
        ("import math\nimport no_such_module_here\n", (":2", "ModuleNotFoundError", "no_such_module_here")),
        ("import tunebook as tb\n\ntb.kernels.linear.runner('torch')(lambda *a: None)\n", (":3", "torch", "already")),
        ("raise SystemExit(0)\n", ("exits",)),
    ],
)
def test_a_file_of_kernels_that_does_not_import_is_one_line(
    source: str, words: tuple[str, ...], tmp_path: Path, cli_inside: Cli
) -> None:
    path = tmp_path / "kernels.py"
    path.write_text(source)
    line = complaint(cli_inside(tmp_path / "home", *TUNE, "--with", path, code=1))
    assert all(word in line for word in (str(path), *words)), line


def test_generating_needs_a_tokenizer_and_a_prompt(tmp_path: Path, cli_inside: Cli) -> None:
    done = cli_inside(tmp_path / "home", "generate", "tiny-moe", "--prompt", "hello", code=1)
    assert "tokenizer" in done.stderr.splitlines()[-1]
    assert "--prompt" in cli_inside(tmp_path / "home", "generate", "tiny-moe", code=2).stderr
    assert not (tmp_path / "home").exists()


# A terminal, and Ctrl-C


def test_a_terminal_gets_a_table_with_lines_and_colours(
    tmp_path: Path, cli_environment: Callable[..., dict[str, str]]
) -> None:
    environment = cli_environment(tmp_path, TERM="xterm-256color", COLUMNS="160")
    environment.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tunebook", "env"], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait(60) == 0
    shown = text.decode()
    assert "\x1b[" in shown
    assert "┃" in shown
    assert "TUNEBOOK_AUTOTUNE_CACHE" in shown


@pytest.fixture(scope="session")
def interrupted(
    cli_environment: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str, str, Path]:
    """A tuning that gets Ctrl-C after its first verdict: cache directory, exit code, standard output and error, run file."""
    home = tmp_path_factory.mktemp("interrupted") / "home"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tunebook",
            "tune",
            "tiny-moe",
            "--decode",
            "1,4,16",
            "--prefill",
            "64",
            "--budget",
            "100",
        ],
        env=cli_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = None
    try:
        for _ in range(6000):
            run = next(home.glob("autotune/*/runs/*.jsonl"), None)
            if (run is not None and b'"type":"verdict"' in run.read_bytes()) or process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert run is not None, err
    return home, process.returncode, out, err, run


def test_an_interrupted_tuning_says_so_and_keeps_a_readable_run(
    interrupted: tuple[Path, int, str, str, Path], cli_inside: Cli
) -> None:
    home, code, out, err, path = interrupted
    assert code == 130
    assert "Traceback" not in err
    assert "interrupted" in err.splitlines()[-1]
    assert "autotune completed" not in err
    assert out == ""
    run = read_run(path)
    assert run.verdicts
    assert run.misses == ()
    shown = json.loads(cli_inside(home, "show", path, "--json").stdout)
    assert shown["verdicts"].keys() == run.verdicts.keys()
    assert shown["complete"] is False


def test_an_interrupted_tuning_goes_on_from_what_was_tuned(
    interrupted: tuple[Path, int, str, str, Path], cli_inside: Cli
) -> None:
    home, _, _, _, path = interrupted
    run = read_run(path)
    again = ("tune", "tiny-moe", "--decode", "1,4,16", "--prefill", "64", "--budget", "3", "--json")
    problems = json.loads(cli_inside(home, *again).stdout)["problems"]
    assert problems["cached"] >= len(run.verdicts), "what was tuned before Ctrl-C is tuned again"
