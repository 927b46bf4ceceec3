"""`tunebook diff` on the command line: exit codes, texts, Markdown and JSON, of books whose content is known."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.records import Environment, Offered, Plan, Profile

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
HOSTILE = "native[k='<script>|`x`%1B[31m']"


class Pair:
    """A cache, the run that it comes from, and a later run in which one problem's tactic is worth twice as much."""

    def __init__(self, made: Any, cli_inside: Cli) -> None:
        self.made, self._cli = made, cli_inside
        self.keys = [made.key(size) for size in (1, 2, 4, 8)]
        self.key = self.keys[2]
        profile = Profile(
            phase="decode 4", seconds=1.0, calls=dict.fromkeys(self.keys, 1), taken=dict.fromkeys(self.keys, 0.2)
        )
        self.plan = Plan(model="a-model", fingerprint="f", tactics={}, requested=("decode 4",), profile=(profile,))
        self.verdicts = [made.verdict(key, run="winners.20260101_000000.jsonl") for key in self.keys]
        made.cache(self.verdicts, [self.plan])
        self.one = made.run(self.verdicts, plan=self.plan, note="the first")
        self.other = self.run(self.twice())

    def twice(self, **changes: Any) -> list[Any]:
        """The verdicts of the later run."""
        changed = self.made.verdict(self.key, 3.0, **{"seconds": 1e-4, "run": "other.jsonl", **changes})
        return [changed if verdict.problem == self.key else verdict for verdict in self.verdicts]

    def run(self, verdicts: list[Any], **header: Any) -> Path:
        path: Path = self.made.run(verdicts, plan=self.plan, **{"note": "tiles", **header})
        return path

    def diff(self, *arguments: object, code: int) -> subprocess.CompletedProcess[str]:
        words = ("--cache", self.made.cache_path) if not any("/" in str(a) for a in arguments[:2]) else ()
        return self._cli(self.made.folder, "diff", *arguments, *words, code=code)


@pytest.fixture
def pair(made: Any, cli_inside: Cli) -> Pair:
    return Pair(made, cli_inside)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error, which must be all there is."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tunebook: error: ")
    assert done.stdout == ""
    return line


def test_a_significant_difference_is_exit_code_1_and_named(pair: Pair) -> None:
    lines = pair.diff(code=1).stdout.splitlines()
    assert lines[0] == f"A: run {pair.one} (a-model, fresh, 2026-01-01 00:00:00, the first, 4 problems)"
    assert lines[1] == f"B: run {pair.other} (a-model, fresh, 2026-01-01 00:00:01, tiles, 4 problems)"
    assert lines[2].startswith("noise between runs: 3% are assumed")
    assert "4 problems in both: 1 differ (a false discovery rate of 5 %), 0 winners flipped" in lines
    row = next(line for line in lines if line.startswith(pair.key))
    assert re.search(r"1\.50× \[1\.4\d, 1\.5\d\] +3\.00× \[2\.9\d, 3\.03\] +2\.00× \[1\.8\d, 2\.\d\d\]", row)
    assert "different, default 100 µs → 300 µs" in row
    assert "the defaults themselves took 1.00 times as long in B (1.00 to 3.00); that is no part of any change" in lines
    assert re.search(r"^run note +the first +tiles$", "\n".join(lines), re.MULTILINE)
    phase = next(line for line in lines if line.startswith("decode 4"))
    step = 1 - 4 * 0.2 / 3
    assert f"{step / (step - 0.2 / 3):.2f}×" in phase
    assert lines[-1] == f"different: 1 of 4 problems: {pair.key}"


def test_the_same_is_exit_code_0(pair: Pair) -> None:
    pair.other.unlink()
    for arguments in ((pair.one, pair.one), ("latest", "cache"), (pair.one, pair.made.cache_path)):
        assert pair.diff(*arguments, code=0).stdout.splitlines()[-1] == "no significant difference"


def test_the_document(pair: Pair) -> None:
    document = json.loads(pair.diff("cache", "latest", "--json", code=1).stdout)
    assert document["different"] == [pair.key]
    assert document["before"]["kind"] == "cache"
    assert document["after"]["path"] == str(pair.other)
    first = document["changes"][0]
    assert (first["problem"], first["significant"], first["flipped"]) == (pair.key, True, False)
    assert first["ratio"] == pytest.approx(2)
    assert first["low"] < 2 < first["high"]
    assert 0 <= first["p"] <= first["q"] <= 0.05
    assert document["between"] == {"deviation": 0.03, "restarts": 0}
    assert [phase["phase"] for phase in document["phases"]] == ["decode 4"]
    assert "confirmed" not in document


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)


def test_markdown_for_a_pull_request(pair: Pair) -> None:
    text = pair.diff("--markdown", code=1).stdout
    assert text.startswith("**different: 1 of 4 problems: ")
    changes = text.split("#### Changes")[1].split("####")[0]
    rows = [cells(line) for line in changes.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1, "a bar of a key ends no cell"
    assert rows[2][1].strip() == "`" + pair.key.replace("|", "\\|") + "`"
    assert "2.00×" in rows[2][6]


def test_names_out_of_files_are_neither_markup_nor_colours(pair: Pair) -> None:
    offered = {**pair.made.offered, "native": Offered(version="<b>9</b>\x1b[1m", space="")}
    other = pair.run(pair.twice(winner=HOSTILE, offered=offered), note="*bold* \x1b[31m")
    for arguments in ((), ("--markdown",)):
        text = pair.diff(pair.one, other, *arguments, code=1).stdout
        assert "\x1b" not in text
        assert "<script>" in text
    found = [cell for line in text.splitlines() if line.startswith("|") for cell in cells(line) if "<" in cell]
    assert found
    assert all(re.fullmatch(r" (`[^`]+`|[^<>]*(\\[<>][^<>]*)*) ", cell) for cell in found), found
    assert "*bold*" not in text.replace("`*bold*", "")


def test_another_machine_is_said(pair: Pair) -> None:
    elsewhere = Environment(hard={**pair.made.environment.hard, "threads": "64"}, soft=pair.made.environment.soft)
    text = pair.diff(pair.one, pair.run(pair.twice(), environment=elsewhere), code=1).stdout
    assert "made on different machines" in text
    assert re.search(r"^threads +2 +64$", text, re.MULTILINE)


def test_what_only_one_has_and_what_cannot_be_read_are_said(pair: Pair) -> None:
    left_out = pair.made.verdict(pair.keys[0], 1.0, note="left out: the budget was spent", rounds=0)
    other = pair.run([left_out, *pair.twice()[2:], pair.made.verdict(pair.made.key(16))])
    other.write_bytes(
        other.read_bytes().replace(b'"native[tile=1]","status":"proven"', b'"native[tile=1]","status":1', 1)
    )
    text = pair.diff(pair.one, other, code=0).stdout
    assert "B: 1 entries cannot be read; `tunebook show` names them" in text
    assert f"only in A: 2 problems: {pair.keys[1]}" in text
    assert f"only in B: 1 problems: {pair.made.key(16)}" in text
    assert f"left out by a budget, not compared: 1 problems: {pair.keys[0]}" in text


def test_only_the_first_of_many_are_shown(pair: Pair) -> None:
    keys = [pair.made.key(size) for size in range(1, 31)]
    one = pair.run([pair.made.verdict(key, run="one") for key in keys])
    other = pair.run([pair.made.verdict(key, 3.0, winner="native[tile=2]", run="two") for key in keys])
    text = pair.diff(one, other, code=1).stdout
    assert "(the first 20; --json has all)" in text
    assert sum(line.startswith("linear|") for line in text.splitlines()) == 20
    assert "30 of 30 problems" in text.splitlines()[-1]
    assert text.splitlines()[-1].endswith(" and 27 more")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("latest", "latest"), ("latest and latest are the same",)),
        (("--markdown", "--json"), ("--markdown and --json",)),
        (("--budget", "5"), ("--budget", "--confirm")),
        (("--with", "x.py"), ("--with", "--confirm")),
        (("--confirm", "--budget", "0"), ("--budget 0",)),
        (("--confirm", "--budget", "inf"), ("--budget inf",)),
        (("a/a.jsonl", "a/b.jsonl", "--model", "m"), ("--model", "are paths")),
        (("a/a.jsonl", "a/b.jsonl"), ("a/a.jsonl", "no such file")),
        (("latest", "previous", "--model", "nobody"), ("no run of nobody",)),
    ],
    ids=" ".join,
)
def test_any_error_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: tuple[str, ...], pair: Pair) -> None:
    line = complaint(pair.diff(*arguments, code=2))
    assert all(word in line for word in words), line


def test_a_file_that_is_neither_is_an_error_too(pair: Pair) -> None:
    broken = pair.one.with_name("broken.jsonl")
    broken.write_text("[]", encoding="utf-8")
    assert "broken.jsonl" in complaint(pair.diff(pair.one, broken, code=2))


def test_where_nothing_was_tuned(tmp_path: Path, cli_inside: Cli) -> None:
    assert "`tunebook tune`" in complaint(cli_inside(tmp_path / "home", "diff", code=2))


def test_help_gives_its_own_exit_codes(cli_inside: Cli, tmp_path: Path) -> None:
    text = " ".join(cli_inside(tmp_path, "diff", "--help").stdout.split())
    assert "0: no significant difference; 1: a significant difference; 2: an error" in text


# --confirm


def test_runs_of_different_models_and_of_another_machine_cannot_be_raced(pair: Pair) -> None:
    line = complaint(pair.diff("--confirm", code=2))
    assert "another machine" in line
    assert "device: cpu of a test ≠ " in line
    other = pair.run(pair.twice(), model="another")
    line = complaint(pair.diff(pair.one, other, "--confirm", code=2))
    assert "different models, a-model and another" in line


def test_where_nothing_is_suspect_nothing_is_loaded(pair: Pair) -> None:
    done = pair.diff(pair.one, pair.one, "--confirm", code=0)
    assert done.stdout.splitlines()[-1] == "no significant difference"
    assert json.loads(pair.diff(pair.one, pair.one, "--confirm", "--json", code=0).stdout)["confirmed"] == []


def test_ops_outside_a_model_need_the_script_that_called_them(pair: Pair) -> None:
    one, other = pair.run(pair.verdicts, model=""), pair.run(pair.twice(), model="")
    line = complaint(pair.diff(one, other, "--confirm", code=2))
    assert "--with FILE" in line
