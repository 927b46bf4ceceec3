"""A terminal of any width, Ctrl-C, and a document that nothing spoils."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunebook.store import read_run

PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "4")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


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
