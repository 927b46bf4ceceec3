"""A model that serves in a process of its own is counted; `tunebook coverage` shows what was untuned, and `tune` covers it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.devices import device_of
from tunebook.dispatch._counting import COUNTING
from tunebook.records import CoverageDocument, Served
from tunebook.store import read_run
from tunebook.store.coverage import encode_coverage

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]
Environment = Callable[..., dict[str, str]]

#: Layers of tiny-moe, each with one call of `experts` a step.
LAYERS = 3
CLASS = "MixtralForCausalLM"

#: Serves steps of [sequences, tokens] given as arguments, each so many times; waits for a line, and serves them again.
SERVER = """
import sys, torch, tunebook as tb

steps = [tuple(map(int, step.split(","))) for step in sys.argv[1:]]
with tb.ModelRunner("tiny-moe") as runner, torch.inference_mode():
    runner.autotune(policy="replay")
    for waits in (True, False):
        for batch, tokens, times in steps:
            for _ in range(times):
                runner.loaded.model(input_ids=torch.ones(batch, tokens, dtype=torch.int64))
        if waits:
            print("served", flush=True)
            if not sys.stdin.readline():
                break
counts = tb.coverage()
print(counts.calls, file=sys.stderr)
"""


def serving(environment: dict[str, str], *steps: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, *steps],
        env={**environment, "TUNEBOOK_COVERAGE": "1", "TUNEBOOK_LOG_LEVEL": "ERROR"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def served(
    first: tuple[Path, dict[str, Any], str], cli_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cache directory of a tuning of decode 1 and prefill 2, after two processes have served more than that at once."""
    import shutil

    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(first[0], home)
    processes = [serving(cli_environment(home), "1,1,4", "3,1,2", "1,7,3") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    return home


def file_of(home: Path) -> Path:
    (path,) = home.glob("autotune/*/coverage.json")
    return path


def experts(document: dict[str, Any], rows: int) -> dict[str, Any]:
    (found,) = [r for r in document["problems"] if r["op"] == "experts" and r["problem"].endswith(f"|M≤{rows}")]
    return dict(found)


def test_two_processes_that_serve_are_counted_together(served: Path, cli_inside: Cli) -> None:
    document = json.loads(cli_inside(served, "coverage", "--json").stdout)
    for rows, calls in ((1, 4), (4, 2), (8, 3)):
        row = experts(document, rows)
        assert sum(row[name] for name in ("pinned", "tuned", "bucket", "default")) == 2 * LAYERS * calls
        assert row["model"] == CLASS
        assert row["tuned_as"] == "tiny-moe"
    assert experts(document, 8)["bucket"] + experts(document, 8)["default"] == 2 * LAYERS * 3
    assert (experts(document, 1)["met"], experts(document, 8)["met"]) == (True, False)
    assert experts(document, 8)["problem"] in document["unmet"]
    assert document["calls"] == sum(op["calls"] for op in document["ops"])
    assert 0 < document["untuned_calls"] <= document["calls"]
    assert 0 < document["untuned_share"] <= 1
    (one,) = document["suggestions"]
    assert (one["source"], one["decode"][-1], one["prefill"]) == ("tiny-moe", 3, [7])
    assert one["continuing"] == any(row["left_out"] for row in document["problems"]) == (len(one["decode"]) > 1)


def test_the_command_is_there_to_be_pasted(served: Path, cli_inside: Cli) -> None:
    done = cli_inside(served, "coverage", "--threads", "1")
    command = next(line for line in done.stdout.splitlines() if line.startswith("  tunebook tune "))
    words = shlex.split(command)
    assert words[:4] == ["tunebook", "tune", "tiny-moe", "--decode"]
    assert words[4] in ("3", "1,3"), "1 where the small budget of the tuning did not reach all of it"
    assert words[5:7] == ["--prefill", "7"]
    assert words[-2:] == ["--threads", "1"]
    assert "served untuned: " in done.stdout
    assert "estimates" in done.stdout
    for title in ("By op", "Served untuned, what takes longest first", "Never met by a dummy run"):
        assert title in done.stdout
    only = cli_inside(
        served, "coverage", "--model", "tiny-moe", "--cache", next(served.glob("autotune/*/winners.json"))
    )
    assert "--cache " in only.stdout


def test_a_tuning_takes_its_sizes_from_the_file(
    served: Path, tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    import shutil

    home = tmp_path / "home"
    shutil.copytree(served, home)
    narrow = ("--op", "experts", "--only-runner", "torch", "--budget", "4", "--json")
    done = cli_inside(home, "tune", "tiny-moe", "--from-coverage", *narrow)
    assert requested(done.stdout) == {"decode 1", "decode 3", "prefill 2", "prefill 7"}, "the former plan's stay"
    document = json.loads(cli_inside(home, "coverage", "--json").stdout)
    for rows in (4, 8):
        assert experts(document, rows)["met"]
    path = file_of(home)
    key = experts(document, 8)["problem"]
    if experts(document, 8)["covered"]:  # unless so small a budget did not reach it
        counted(path, {key: Served(default=9, prefill=7)})
        again = cli_inside(home, "tune", "tiny-moe", "--from-coverage")
        assert again.stdout == "tiny-moe: there is nothing to tune: what was counted of its calls is tuned\n"
        as_json = json.loads(cli_inside(home, "tune", "tiny-moe", "--from-coverage", "--json").stdout)
        assert as_json["tuned"] is False
    counted(path, {key: Served(default=9)}, model="Another")
    line = complaint(cli_inside(home, "tune", "tiny-moe", "--from-coverage", code=1, TUNEBOOK_LOG_LEVEL="ERROR"))
    assert all(word in line for word in ("tiny-moe", CLASS, "TUNEBOOK_COVERAGE=1"))


def requested(document: str) -> set[str]:
    """The phases that a tuning's plan is for."""
    (plan,) = read_run(json.loads(document)["run"]).plans.values()
    return set(plan.requested)


def counted(path: Path, problems: dict[str, Served], model: str = CLASS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_coverage(CoverageDocument(since="a", until="b", models={model: problems})))


def test_sizes_of_the_command_line_are_added(tmp_path: Path, cli_inside: Cli) -> None:
    home, path = tmp_path / "home", tmp_path / "named.json"
    counted(path, {"experts|E=8,K=2,H=128,I=256|bf16|M≤2": Served(default=9, decode=2)})
    narrow = ("--op", "experts", "--only-runner", "torch", "--budget", "4", "--json", "--decode", "1")
    done = cli_inside(home, "tune", "tiny-moe", "--from-coverage", *narrow, "--fresh", TUNEBOOK_COVERAGE_FILE=str(path))
    assert requested(done.stdout) == {"decode 1", "decode 2"}


def test_a_tuning_does_not_count_its_own_steps(
    tuned: tuple[Path, dict[str, Any]], tmp_path: Path, cli_inside: Cli
) -> None:
    home, path = tuned[0], tmp_path / "named.json"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TUNEBOOK_COVERAGE", "1")
            patch.setenv("TUNEBOOK_COVERAGE_FILE", str(path))
            narrow = ("--op", "experts", "--only-runner", "torch", "--budget", "4")
            cli_inside(home, "tune", "tiny-moe", "--decode", "1,2", "--prefill", "2", *narrow)
            COUNTING.write(0.0)
            assert not path.exists()
    finally:
        COUNTING.clear()


def test_a_reset_says_first_what_it_would_forget(tmp_path: Path, cli_inside: Cli, complaint: Complaint) -> None:
    home, path = tmp_path / "home", tmp_path / "c\x1b[31m.json"
    counted(path, {"o||f|M≤1": Served(default=1234)})
    named = ("coverage", "--file", path, "--reset")
    done = cli_inside(home, *named)
    assert "1,234 calls" in done.stdout
    assert "\x1b" not in done.stdout
    assert "say --yes" in done.stdout
    assert path.exists()
    assert "would_remove" in json.loads(cli_inside(home, *named, "--json").stdout)
    assert "removed: " in cli_inside(home, *named, "--yes").stdout
    assert not path.exists()
    assert "no such file" in complaint(cli_inside(home, *named, "--yes", code=1))
    path.write_text("broken")
    assert "cannot be read" in cli_inside(home, *named).stdout
    assert "removed" in json.loads(cli_inside(home, *named, "--yes", "--json").stdout)
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--yes",), 2, ("--yes", "--reset")),
        (("--reset", "--model", "m"), 2, ("--reset", "--model")),
        (("--model", "absent"), 2, ("'absent'", "there are", "Some")),
        (("--file", "no-such-file.json"), 1, ("no such file", "TUNEBOOK_COVERAGE=1")),
        (("--file", "/dev/null"), 1, ("not a file",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    path = tmp_path / "named.json"
    counted(path, {"o||f|M≤1": Served(default=1)}, model="Some")
    done = cli_inside(tmp_path / "home", "coverage", *arguments, code=code, TUNEBOOK_COVERAGE_FILE=str(path))
    line = complaint(done)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"), [(("--replay",), ("--from-coverage", "--replay")), ((), ("nothing was tuned",))], ids=str
)
def test_a_tuning_without_a_file_to_go_by_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    code = 2 if arguments else 1
    line = complaint(cli_inside(tmp_path / "home", "tune", "tiny-moe", "--from-coverage", *arguments, code=code))
    assert all(word in line for word in words), line


def test_a_run_that_goes_on_takes_no_other_sizes(
    tuned: tuple[Path, dict[str, Any]], cli_inside: Cli, complaint: Complaint
) -> None:
    home, document = tuned
    done = cli_inside(home, "tune", "--resume", document["run"], "--from-coverage", code=2)
    assert "--resume" in complaint(done)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"schema":2}', '{"since":NaN}'], ids=lambda t: t[:12])
def test_a_hostile_file_is_one_line_of_every_command(
    text: str, tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    path = tmp_path / "named.json"
    path.write_text(text)
    for command in (("coverage",), ("coverage", "--json"), ("tune", "tiny-moe", "--from-coverage")):
        done = cli_inside(tmp_path / "home", *command, code=1, TUNEBOOK_COVERAGE_FILE=str(path))
        assert "named.json" in complaint(done)


def test_text_out_of_a_file_does_not_reach_the_terminal_as_it_is(tmp_path: Path, cli_inside: Cli) -> None:
    path = tmp_path / "named.json"
    counted(path, {"o|a=\x1b[31m|f|M≤1": Served(default=1)}, model="evil\x1b[31m\nline")
    done = cli_inside(tmp_path / "home", "coverage", "--file", path)
    assert "\x1b" not in done.stdout
    assert "evil" in done.stdout
    assert "MODEL" in done.stdout


def test_what_is_called_outside_of_a_model_is_tuned_in_a_block(tmp_path: Path, cli_inside: Cli) -> None:
    path = tmp_path / "named.json"
    counted(path, {f"o{i}||f|M≤1": Served(default=1) for i in range(30)}, model="free")
    done = cli_inside(tmp_path / "home", "coverage", "--file", path)
    assert "30 problems outside of any model" in done.stdout
    assert "tb.autotune()" in done.stdout
    assert "10 more" in done.stdout
    assert "tunebook tune" not in done.stdout


def test_a_file_of_many_models_does_not_flood_the_terminal(tmp_path: Path, cli_inside: Cli) -> None:
    path = tmp_path / "named.json"
    rows = {f"m{i}": {f"o{i}||f|M≤{i + 1}": Served(default=1)} for i in range(300)}
    path.write_bytes(encode_coverage(CoverageDocument(since="a", until="b", models=rows)))
    done = cli_inside(tmp_path / "home", "coverage", "--file", path)
    assert len(done.stdout.splitlines()) < 200
    assert "280 more models" in done.stdout
    assert len(json.loads(cli_inside(tmp_path / "home", "coverage", "--file", path, "--json").stdout)["ops"]) == 300


def test_where_all_is_tuned_it_says_so(demo: Any, tmp_path: Path, cli_inside: Cli) -> None:
    demo.op().tune(cache=tmp_path / "own.json")
    path = tmp_path / "named.json"
    counted(path, {demo.key(): Served(tuned=7)})
    done = cli_inside(tmp_path / "home", "coverage", "--file", path, "--cache", tmp_path / "own.json")
    assert "all that was called is tuned" in done.stdout
    assert "served untuned: 0.0% of the calls, about 0.0% of the time" in done.stdout


def test_the_default_place_is_this_environments(tmp_path: Path, cli_inside: Cli) -> None:
    import torch

    home = tmp_path / "home"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        digest = device_of("cpu").environment().digest
    finally:
        torch.set_num_threads(before)
    counted(home / "autotune" / digest / "coverage.json", {"o||f|M≤1": Served(default=5)})
    assert json.loads(cli_inside(home, "coverage", "--json").stdout)["calls"] == 5
