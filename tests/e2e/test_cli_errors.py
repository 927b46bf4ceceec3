"""What goes wrong on the command line: one line on standard error, and an exit code."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PHASES = ("--decode", "1", "--prefill", "2")
TUNE = ("tune", "tiny-moe", *PHASES, "--budget", "4")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]


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
        (("--threads", "1000000000000"), 2, ("threads", "1000000000000")),
        (("--decode", "100000000000"), 2, ("decode", "100000000000", "1048576")),
        (("--prefill", "1048577"), 2, ("prefill", "1048577", "1048576")),
        (("--prefill", "9" * 5000), 2, ("--prefill", "999")),
        (("--fresh", "--continue"), 2, ("--fresh", "--continue")),
        (("--memory-limit", "0.9x"), 2, ("--memory-limit", "'0.9x'", "1.1x", "3GiB")),
        (("--memory-limit", "lots"), 2, ("--memory-limit", "'lots'")),
        (("--memory-limit", "1MB"), 2, ("memory limit 1000000B", "the model's own weights")),
        (("--mix", "decode 1"), 2, ("--mix", "'decode 1'", "--record-mix")),
        (("--mix", "decode 1=x"), 2, ("--mix", "'decode 1=x'")),
        (("--mix", "decode 9=1"), 2, ("mix", "decode 9", "decode 1, prefill 2")),
        (("--with", "no/such_file.py"), 1, ("no/such_file.py", "no such file")),
        (("--op", "conv"), 2, ("'conv'", "linear")),
        (("--skip-op", "conv"), 2, ("'conv'", "linear")),
        (("--only-runner", "cutlass"), 2, ("'cutlass'", "torch")),
        (("--cache", "/"), 2, ("/", "directory")),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else str(value),
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint
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
    assert "Usage" in cli_inside(tmp_path, code=2).stderr
    assert "tone" in cli_inside(tmp_path, "tone", code=2).stderr


def test_an_unknown_model_names_the_nearest(tmp_path: Path, cli_inside: Cli, complaint: Complaint) -> None:
    line = complaint(cli_inside(tmp_path / "home", "tune", "tiny-mo", code=1))
    assert "'tiny-mo'" in line
    assert "did you mean 'tiny-moe'" in line
    line = complaint(cli_inside(tmp_path / "home", "tune", tmp_path, code=1))
    assert str(tmp_path) in line


@pytest.mark.parametrize("arguments", [("coverage", "--file"), ("pin", "linear", "default", "--with")])
def test_the_home_of_nobody(arguments: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint) -> None:
    line = complaint(cli_inside(tmp_path / "home", *arguments, "~nosuchuser/x.py", code=1))
    assert "~nosuchuser/x.py" in line
    assert "home directory" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TUNEBOOK_AUTOTUNE", "perhaps"),
        ("TUNEBOOK_AUTOTUNE_CACHE", "2"),
        ("TUNEBOOK_BUDGET_S", "soon"),
        ("TUNEBOOK_BUDGET_S", "-1"),
        ("TUNEBOOK_THREADS", "0"),
        ("TUNEBOOK_LOG_LEVEL", "LOUD"),
        ("TUNEBOOK_MEMORY_LIMIT", "lots"),
        ("TUNEBOOK_MEMORY_LIMIT_GB", "lots"),
    ],
)
def test_a_wrong_variable_is_one_line_and_env_still_works(
    name: str, value: str, tmp_path: Path, cli_inside: Cli, complaint: Complaint
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
    source: str, words: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint
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


ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 1, ("error: out of memory", "--prefill")),
        (RuntimeError(ALLOCATOR), 1, ("error: out of memory", "4,398.05 GB", "--decode", "--prefill")),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 1, ("error: ", "No space left on device", "/full")),
        (KeyError("surprise"), 70, ("internal error: KeyError: 'surprise'", "TUNEBOOK_LOG_LEVEL=DEBUG", "report")),
        (RuntimeError("one\ntwo"), 70, ("internal error: RuntimeError: one two",)),
    ],
    ids=repr,
)
def test_what_nobody_expected_is_one_line_and_with_debug_a_traceback(
    error: Exception,
    code: int,
    words: tuple[str, ...],
    tmp_path: Path,
    cli_inside: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(options: Any) -> None:
        raise error

    monkeypatch.setattr("tunebook.cli.tune.run", fail)
    done = cli_inside(tmp_path, *TUNE, code=code)
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line
    assert done.stdout == ""
    done = cli_inside(tmp_path, *TUNE, code=code, TUNEBOOK_LOG_LEVEL="DEBUG")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1] == line


def test_an_error_that_a_file_of_kernels_causes_while_the_model_runs_names_its_line(
    tmp_path: Path, cli: Cli, complaint: Complaint
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("""
import transformers

def forward(self, *arguments, **named):
    raise ValueError("gave\\nup")

transformers.MixtralForCausalLM.forward = forward
""")
    line = complaint(cli(tmp_path / "home", *TUNE, "--with", path, code=1, TUNEBOOK_LOG_LEVEL="ERROR"))
    assert f"{path}:5: ValueError: gave up" in line


@pytest.mark.parametrize("command", ["show", "doctor", "generate"])
def test_an_absurd_thread_count_is_refused_by_each_command(
    command: str, tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    model = ("tiny-moe", "--prompt", "hello") if command == "generate" else ()
    line = complaint(cli_inside(tmp_path, command, *model, "--threads", "1000000000000", code=2))
    assert "threads=1000000000000" in line
