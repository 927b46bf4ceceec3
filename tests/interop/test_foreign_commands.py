"""`tunebook show`, `diff`, `history`, `report` and `convert` of other tuners' books."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from tunebook.interop import Format
from tunebook.records import Environment, Header, Rejected, Timed, TrialLine

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def first(fixtures: Path) -> Path:
    return fixtures / "flashinfer-v1" / "first.json"


@pytest.fixture
def second(fixtures: Path) -> Path:
    return fixtures / "flashinfer-v1" / "second.json"


@pytest.fixture
def runs(fixtures: Path) -> Path:
    return next((fixtures / "sglang").rglob("runs"))


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.splitlines()
    assert line.startswith("tunebook: error: ")
    assert done.stdout == ""
    return line


def test_show_prints_every_kind_of_book(kind: Format, path: Path, cli_inside: Run, tmp_path: Path) -> None:
    done = cli_inside(tmp_path, "show", path)
    assert str(path) in done.stdout
    assert kind.title in done.stdout
    document = json.loads(cli_inside(tmp_path, "show", path, "--json").stdout)
    assert document["kind"] == kind.name
    assert document["entries"]
    assert document["misses"] == []


def test_show_tells_an_entry_in_full(first: Path, cli_inside: Run, tmp_path: Path) -> None:
    done = cli_inside(tmp_path, "show", first, "--problem", "demo::moe', ((256")
    assert "('demo::moe', ((256, 48), (4, 48, 16)), ('swiglu', None, 2))" in done.stdout
    assert "RoutedMoeRunner[" in done.stdout
    assert "demo::gemm" not in done.stdout
    failed = cli_inside(tmp_path, "show", first, "--problem", "nothing", code=2)
    assert "none of its 6 keys contains 'nothing'" in complaint(failed)


def test_diff_of_two_runs_of_sglang_tells_whose_winner_flipped(runs: Path, cli_inside: Run, tmp_path: Path) -> None:
    one, other = sorted(runs.iterdir())
    done = cli_inside(tmp_path, "diff", one, other, code=1)
    assert "Winners that flipped" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("different: ")
    document = json.loads(cli_inside(tmp_path, "diff", one, other, "--json", code=1).stdout)
    assert document["different"] is True
    assert document["same"] + len(document["flipped"]) == 6
    assert {"key", "op", "problem", "before", "after", "before_s", "after_s", "ratio"} == set(document["flipped"][0])
    markdown = cli_inside(tmp_path, "diff", one, other, "--markdown", code=1).stdout
    assert markdown.startswith("**different: ")
    assert "| op | problem | A | B |" in markdown


def test_diff_of_a_book_with_itself_says_that_nothing_differs(first: Path, cli_inside: Run, tmp_path: Path) -> None:
    done = cli_inside(tmp_path, "diff", first, first)
    assert done.stdout.splitlines()[-1] == "no difference: 6 problems with the same winners"


def test_diff_compares_the_two_stores_of_flashinfer(
    first: Path, fixtures: Path, cli_inside: Run, tmp_path: Path
) -> None:
    cli_inside(tmp_path, "convert", first, "--to", "flashinfer-v2", "-o", tmp_path / "store")
    done = cli_inside(tmp_path, "diff", first, tmp_path / "store")
    assert "no difference" in done.stdout


def test_diff_names_what_only_one_has_and_which_versions_differ(first: Path, cli_inside: Run, tmp_path: Path) -> None:
    raw = json.loads(first.read_text())
    raw["_metadata"]["gpu"] = "NVIDIA\x1b[2J H200"
    dropped = next(key for key in raw if "moe" in key)
    del raw[dropped]
    (tmp_path / "less.json").write_text(json.dumps(raw))
    done = cli_inside(tmp_path, "diff", first, tmp_path / "less.json", code=1)
    assert "only in A: 1 problems: ('demo::moe'" in done.stdout
    assert "NVIDIA\\x1b[2J H200" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("command", ["diff", "report"])
def test_a_book_and_something_else_are_not_compared(command: str, first: Path, cli_inside: Run, tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text(
        '{"schema": 1, "environment": {"hard": {"device": "cpu"}, "soft": {}}, "verdicts": {}, "plans": {}}'
    )
    failed = cli_inside(tmp_path, command, first, tmp_path / "cache.json", code=2)
    assert "is of flashinfer-v1 and" in complaint(failed)


def test_what_is_no_book_is_named_for_that_and_not_for_being_of_another_tuner(
    first: Path, cli_inside: Run, tmp_path: Path
) -> None:
    failed = cli_inside(tmp_path, "diff", tmp_path / "absent.json", first, code=2)
    assert "absent.json: absent: there is no such file" in complaint(failed)


def test_books_of_two_tuners_are_not_compared(first: Path, fixtures: Path, cli_inside: Run, tmp_path: Path) -> None:
    other = next((fixtures / "vllm-moe").glob("*.json"))
    failed = cli_inside(tmp_path, "diff", first, other, code=2)
    assert "no problem is in both; compare two of one tuner" in complaint(failed)


def test_confirm_is_refused(first: Path, second: Path, cli_inside: Run, tmp_path: Path) -> None:
    failed = cli_inside(tmp_path, "diff", first, second, "--confirm", code=2)
    assert "--confirm races what tunebook can run" in complaint(failed)


def test_history_of_sglangs_runs(runs: Path, cli_inside: Run, tmp_path: Path) -> None:
    lines = cli_inside(tmp_path, "history", runs).stdout.splitlines()
    assert lines[0] == "2 books"
    assert lines[-2].startswith("rank_tp0_pp0_dp0.20261102_080510.json")
    assert lines[-1].startswith("rank_tp0_pp0_dp0.20261101_120000.json")
    document = json.loads(cli_inside(tmp_path, "history", runs, "--json").stdout)
    assert [book["when"] for book in document["books"]] == ["2026-11-02 08:05:10", "2026-11-01 12:00:00"]
    assert document["books"][1]["flipped"] is None
    failed = cli_inside(tmp_path, "history", runs, "--prune", "--model", "x", code=2)
    assert "--model, --prune: only for tunebook's own runs" in complaint(failed)
    failed = cli_inside(tmp_path, "history", tmp_path, code=2)
    assert "there is no book of another tuner in it" in complaint(failed)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or (name == "src" and value) for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_report_of_every_kind_of_book(kind: Format, path: Path, cli_inside: Run, tmp_path: Path) -> None:
    cli_inside(tmp_path, "report", path, "-o", tmp_path / "page.html")
    page = _Page()
    page.feed((tmp_path / "page.html").read_text())
    assert page.tags.count("h1") == 1
    assert "table" in page.tags
    assert kind.title in "".join(page.text)


def test_report_of_two_books_and_markup_in_them_stays_text(
    first: Path, second: Path, cli_inside: Run, tmp_path: Path
) -> None:
    raw = json.loads(second.read_text())
    key = next(key for key in raw if "moe" in key)
    raw[key][1] = "<script>alert(1)</script>"
    (tmp_path / "bad.json").write_text(json.dumps(raw))
    cli_inside(tmp_path, "report", first, tmp_path / "bad.json", "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("script") == 3
    assert "<script>alert" not in text
    assert "Winners that flipped" in "".join(page.text)


def test_convert_says_what_is_lost_and_refuses_what_cannot_be(first: Path, cli_inside: Run, tmp_path: Path) -> None:
    done = cli_inside(tmp_path, "convert", first, "--to", "flashinfer-v2", "-o", tmp_path / "store")
    assert "6 entries" in done.stdout
    lost = [line for line in done.stdout.splitlines() if "does not hold" in line]
    (said,) = lost  # what others would lose is not said
    assert said.startswith(
        "flashinfer-v2 does not hold: `_records`, `_generation`, entries that FlashInfer passes over"
    )
    back = tmp_path / "back.json"
    done = cli_inside(tmp_path, "convert", tmp_path / "store", "--to", "flashinfer-v1", "-o", back, "--json")
    document = json.loads(done.stdout)
    assert (document["from"], document["format"], document["entries"]) == ("flashinfer-v2", "flashinfer-v1", 6)
    (lost_now,) = document["lost"]
    assert "key_fields" in lost_now
    failed = cli_inside(tmp_path, "convert", first, "--to", "cuda", "-o", tmp_path / "x", code=2)
    assert "'cuda' is no format; these are: " in complaint(failed)
    failed = cli_inside(tmp_path, "convert", first, "--to", "vllm-moe", "-o", tmp_path / "x", code=2)
    assert "a book of flashinfer-v1 cannot become vllm-moe" in complaint(failed)
    failed = cli_inside(tmp_path, "convert", first, "--to", "flashinfer-v1", "-o", first, code=2)
    assert "would be lost" in complaint(failed)
    failed = cli_inside(tmp_path, "convert", tmp_path / "no.json", "--to", "t4", "-o", tmp_path / "x", code=1)
    assert "there is no such file" in complaint(failed)


def test_a_malformed_book_is_one_line_with_its_place(first: Path, cli_inside: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(first.read_text()[:-200])
    for arguments in (
        ("show", bad),
        ("report", bad, "-o", tmp_path / "page.html"),
        ("convert", bad, "--to", "flashinfer-v1", "-o", tmp_path / "x.json"),
        ("history", bad),
    ):
        assert f"{bad}: line " in complaint(cli_inside(tmp_path, *arguments, code=1))
    assert f"{bad}: line " in complaint(cli_inside(tmp_path, "diff", first, bad, code=2))


def test_merge_keeps_as_winners_and_tells_the_conflicts(
    first: Path, second: Path, cli_inside: Run, tmp_path: Path
) -> None:
    raw = json.loads(first.read_text())
    (tmp_path / "less.json").write_text(json.dumps({key: raw[key] for key in raw if "moe" not in key}))
    merged = tmp_path / "merged.json"
    document = json.loads(cli_inside(tmp_path, "merge", tmp_path / "less.json", second, "-o", merged, "--json").stdout)
    assert (document["entries"], document["from_a"], document["from_b"]) == (6, 3, 3)
    assert document["conflicts"]
    shown = json.loads(cli_inside(tmp_path, "show", merged, "--json").stdout)["entries"]
    mine = json.loads(cli_inside(tmp_path, "show", first, "--json").stdout)["entries"]
    assert all(shown[key] == mine[key] for key in shown if "moe" not in key)
    failed = cli_inside(tmp_path, "merge", first, second, "-o", merged, code=2)
    assert str(merged) in complaint(failed)
    done = cli_inside(tmp_path, "merge", first, second, "-o", merged, "--force")
    assert "A's is kept" in done.stdout
    failed = cli_inside(tmp_path, "merge", first, merged, "-o", merged, "--force", code=2)
    assert "would be lost" in complaint(failed)


def test_a_run_becomes_a_t4_file_and_nothing_else(cli_inside: Run, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    environment = Environment(hard={"device": "cpu"})
    header = Header(session="s", started="2026-01-01T00:00:00", policy="fresh", environment=environment, version="0")
    problem = "linear|N=64,K=32|bf16|M≤16"
    refused = Rejected(tactic="native[block=7]", reason="correctness", detail="row 3 is off")
    trials: list[Timed | Rejected] = [
        Timed(tactic="default", samples=(0.25, 0.125), rounds=(0, 1)),
        refused,
    ]
    lines = [header, *(TrialLine(problem=problem, trial=trial, race=1) for trial in trials)]
    run.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    done = cli_inside(tmp_path, "convert", run, "--to", "t4", "-o", tmp_path / "t4.json")
    assert "t4" in done.stdout
    document = json.loads((tmp_path / "t4.json").read_text())
    assert {result["invalidity"] for result in document["results"]} == {"correct", refused.t4}
    failed = cli_inside(tmp_path, "convert", run, "--to", "helion", "-o", tmp_path / "x", code=2)
    assert "a run becomes a book of t4 alone, not of helion" in complaint(failed)
