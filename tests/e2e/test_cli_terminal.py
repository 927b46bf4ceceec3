"""A terminal of any width, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.store import read_run

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


Terminal = Callable[..., str]


@pytest.fixture
def terminal(cli_environment: Callable[..., dict[str, str]]) -> Terminal:
    """``terminal(home, columns, *arguments)``: what `tunebook` writes on a terminal of that width."""

    def run(home: Path, columns: int, *arguments: object) -> str:
        environment = cli_environment(home, TERM="xterm-256color", COLUMNS=str(columns))
        environment.pop("NO_COLOR", None)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "tunebook", *map(str, arguments)],
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
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
        assert process.wait(60) == 0, text.decode()
        return text.decode()

    return run


def plain(text: str) -> list[str]:
    """The lines without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()


def test_a_terminal_gets_a_table_with_lines_and_colours(tmp_path: Path, terminal: Terminal) -> None:
    shown = terminal(tmp_path, 160, "env")
    assert "\x1b[" in shown
    assert "┃" in shown
    assert "TUNEBOOK_AUTOTUNE_CACHE" in shown


def test_a_narrow_terminal_gets_paragraphs_in_which_nothing_is_torn(
    tuned: tuple[Path, dict[str, Any]], terminal: Terminal
) -> None:
    home, document = tuned
    lines = plain(terminal(home, 60, "show", document["run"]))
    verdicts = lines[lines.index("Verdicts") : next(i for i, line in enumerate(lines) if line.startswith("plan for"))]
    assert max(map(len, verdicts)) <= 60
    assert not any("┃" in line or "│" in line for line in verdicts)
    for key, verdict in read_run(document["run"]).verdicts.items():
        # A key that is longer than the line is folded.
        at = next(i for i, line in enumerate(verdicts) if key in (line, line + verdicts[i + 1]))
        # A name that is longer than the line goes on behind a comma.
        facts = " · ".join(line.strip() for line in verdicts[at + 1 : at + 7]).replace(", · ", ",")
        assert f"winner {verdict.winner}" in facts
        assert f"status {verdict.status}" in facts


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
            "--thorough",  # so that it lasts well beyond its first verdict
        ],
        env=cli_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # tests in the background inherit that it is ignored
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
