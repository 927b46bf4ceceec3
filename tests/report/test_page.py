"""What a page says and holds, without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import StoreError, UsageError
from tunebook.records import Dim, Problem, Rejected, Timed, TrialLine, VerdictLine
from tunebook.report import _detail as detail
from tunebook.report import comparison_of, report_of, write_page
from tunebook.report._heat import Cell, heat_maps
from tunebook.report._render import _data

SCRIPT = "<script>document.title = 'owned'</script>"


class Text(HTMLParser):
    """The text of a page by the id of the section or row that it stands in; scripts and styles apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: dict[str, list[str]] = {"": []}
        self.scripts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._raw = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in ("section", "tbody"):
            self._open.append(given.get("id") or (self._open[-1] if self._open else ""))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("section", "tbody"):
            self._open.pop()
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts.append(data)
        elif not self._raw:
            for name in dict.fromkeys(["", *self._open]):
                self.parts.setdefault(name, []).append(data)

    def of(self, name: str = "") -> str:
        return " ".join("".join(self.parts[name]).split())


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_run_has_its_answer_first_and_everything_after(written: Any) -> None:
    text = Text(report_of(written.usual()))
    summary = text.of("summary")
    assert summary.startswith("Summary a-model is 1.50× [1.40, 1.60] as fast as with its defaults, over 1 phase.")
    assert (
        "6 of 8 problems have a winner that is faster than the default, 1 keep the default, 1 were left out" in summary
    )
    assert "1 predicted gain of a-model did not arrive" in summary
    assert "decode 16" in text.of("model")
    assert "did not arrive" in text.of("model")
    assert "with the plan 1.10 GB, 1.10×" in text.of("memory")
    assert "linear|N=8,K=8|bf164packed400 MB1.20×300 MB" in text.of("memory")
    assert "a test's" in text.of("environment")
    assert "The run took 60.0 s" in text.of("time")


def test_every_sample_is_in_the_page_to_a_ten_thousandth(written: Any) -> None:
    path = written.usual()
    page = report_of(path)
    data = data_of(page)
    from tunebook.store import read_run

    run = read_run(path)
    rows = [attrs for tag, attrs in Text(page).tags if tag == "tbody" and "data-detail" in attrs]
    keys = re.findall(r'data-detail="\d+"><tr><th scope="row" class="key">(.*?)</th>', page)
    assert len(rows) == len(keys) == len(data["problems"]) == 8
    for key, entry in zip((k.replace("<wbr>", "") for k in keys), data["problems"], strict=True):
        told = {data["texts"][line[0]]: line for line in entry["t"]}
        timed = {t.trial.tactic: t.trial for t in run.trials if t.problem == key and isinstance(t.trial, Timed)}
        assert told.keys() == timed.keys()
        for name, trial in timed.items():
            steps = told[name][8] if trial.rounds[0] >= 0 else told[name][9]
            values = [told[name][2] * (1 + step * data["step"]) for step in steps]
            assert values == pytest.approx(trial.samples, rel=2e-4)


def test_marks_tell_winner_ties_what_did_not_race_and_rejections(written: Any) -> None:
    page = report_of(written.usual())
    data = data_of(page)
    names = data["texts"]
    entry = next(e for e in data["problems"] if any(line[1] == detail.MARKS.index("tied") for line in e["t"]))
    marks = {names[line[0]]: detail.MARKS[line[1]] for line in entry["t"]}
    assert marks == {
        "default": "slower",
        "native[tile=1]": "winner",
        "native[tile=2]": "tied",
        "native[tile=3]": "slower",
        "native[tile=9]": "did not race",
    }
    assert [[names[part] for part in line] for line in entry["r"]] == [
        [f"native[note='{SCRIPT}']", "correctness", f"a row is off {SCRIPT}"]
    ]


def test_nothing_out_of_a_file_becomes_markup(written: Any) -> None:
    page = report_of(written.usual(model=SCRIPT, commit=SCRIPT, policy=f'"{SCRIPT}', command=(SCRIPT,)))
    text = Text(page)
    assert sum(tag == "script" for tag, _ in text.tags) == 3
    assert SCRIPT in text.of("summary")
    assert SCRIPT not in page
    assert not any(name.startswith("on") or name == "style" for _, attrs in text.tags for name in attrs)
    assert not [attrs for _, attrs in text.tags if str(attrs.get("href", "#"))[0] != "#" or "src" in attrs]


def test_control_characters_are_spelt_out(written: Any) -> None:
    page = report_of(written.usual(note="a\x00b\x1b[31m\u202ec"))
    assert r"a\x00b\x1b[31m\u202ec" in page
    assert not set("\x00\x1b\u202e") & set(page)


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=10))
def test_the_data_block_reads_back_and_cannot_end_early(value: Any) -> None:
    text = _data({"value": ["</script><!--<script>", value]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"value": ["</script><!--<script>", value]}


def test_two_hundred_problems_of_twenty_tactics_stay_under_two_megabytes(written: Any) -> None:
    page = report_of(written.large(200, 20, 30))
    data = data_of(page)
    assert sum(len(line[8]) for entry in data["problems"] for line in entry["t"]) == 200 * 20 * 30
    assert len(page.encode()) < 2_000_000


def test_of_a_run_with_more_samples_each_tactic_shows_fewer_and_the_page_says_so(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detail, "MAX_SAMPLES", 100)
    page = report_of(written.large(2, 5, 30))
    data = data_of(page)
    assert {len(line[8]) for entry in data["problems"] for line in entry["t"]} == {10}
    assert {line[6] for entry in data["problems"] for line in entry["t"]} == {30}
    assert "of a tactic with more, 10 samples are shown" in Text(page).of("problems")


def test_a_run_that_was_cut_off_says_so(written: Any) -> None:
    path = written.run([VerdictLine(verdict=written.verdict("linear|N=8,K=8|bf16|M≤4"))], footer=False)
    path.write_bytes(path.read_bytes() + b'{"type":"nonsense"}\n{"type":"ver')
    text = Text(report_of(path))
    assert "did not end by itself" in text.of("summary")
    assert "last line is cut off" in text.of("summary")
    assert "1 entry cannot be read" in text.of("summary")
    assert "line 3" in text.of("unreadable")


def test_an_empty_run_is_a_page_too(written: Any) -> None:
    text = Text(report_of(written.run([])))
    assert "No problem was settled." in text.of("summary")


def test_absurd_samples_are_no_trouble(written: Any) -> None:
    problem = "linear|N=8,K=8|bf16|M≤4"
    trials = [
        TrialLine(problem=problem, trial=Timed(tactic="default", samples=samples, rounds=tuple(range(len(samples)))))
        for samples in ((1e308, 1e308), (5e-324, 1e308), ())
    ]
    other = TrialLine(problem="nobody|||", trial=Rejected(tactic="x", reason="crash"))
    data_of(report_of(written.run([*trials, other, VerdictLine(verdict=written.verdict(problem))])))


def test_a_cache_shows_its_frontier(written: Any, cache_path: Path) -> None:
    page = report_of(cache_path)
    entry = data_of(page)["problems"][0]
    assert entry["t"] == []
    assert len(entry["f"]) == 2
    assert "tunebook report of a cache" in Text(page).of()


def test_a_comparison_tells_what_is_better_worse_and_missing(written: Any, two_runs: tuple[Path, Path]) -> None:
    text = Text(comparison_of(*two_runs))
    assert "2 of 5 problems differ: 1 better in B, 1 worse." in text.of("summary")
    assert "Only in A: 3 problems." in text.of("summary")
    assert "norm|N=8,K=8|bf16|M≤1" in text.of("changes")
    assert "worse" in text.of("p0")
    assert "better" in text.of("p1")
    assert "no longer rejected" in text.of("tactics")
    assert SCRIPT in text.of("environment")


def test_a_run_against_itself_does_not_differ(written: Any) -> None:
    path = written.usual()
    text = Text(comparison_of(path, path))
    assert "No significant difference in 7 problems." in text.of("summary")


def cells(*keys: str) -> list[Cell]:
    return [Cell(problem=key, value=2.0, text="2", target="p") for key in keys]


def test_a_heat_map_has_sizes_across_and_shapes_down() -> None:
    first, second = heat_maps(
        cells(
            "b|N=8|bf16|M≤16",
            "b|N=8|bf16|M≤2",
            "b|N=64|bf16|M≤2",
            "a||bf16|B=1,L≤8",
            "a||bf16|B=1,L≤64",
            "a||bf16|B=2,L≤256",
        )
    )
    assert (first.op, first.across, list(first.columns)) == ("a", "L", ["L≤8", "L≤64", "L≤256"])
    assert (second.op, second.across, list(second.columns)) == ("b", "M", ["M≤2", "M≤16"])
    assert [(label, [cell is not None for cell in row]) for label, row in second.rows] == [
        ("N=8 bf16", [True, True]),
        ("N=64 bf16", [True, False]),
    ]


@given(
    st.lists(
        st.builds(
            lambda n, sizes, policy: (
                Problem(
                    op="op",
                    attrs=(("N", str(n)),),
                    dims=tuple(Dim(name=name, size=size) for name, size in zip("MBL", sizes, strict=False)),
                    policy=policy,
                ).key
            ),
            st.integers(0, 3),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from(["eager", "captured"]),
        ),
        unique=True,
    )
)
def test_no_problem_of_a_heat_map_is_lost(keys: list[str]) -> None:
    shown = [cell.problem for found in heat_maps(cells(*keys)) for _, row in found.rows for cell in row if cell]
    assert sorted(shown) == sorted(keys)


@pytest.mark.parametrize(
    ("value", "shade"),
    [(None, 0), (1.0, 0), (1.02, 0), (1.1, 1), (1.2, 2), (1.6, 3), (3.0, 4), (9.0, 5), (1 / 1.2, -2), (0.1, -5)],
)
def test_shades(value: float | None, shade: int) -> None:
    assert Cell(problem="a|||", value=value, text="", target="").shade == shade


def test_what_is_neither_run_nor_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(StoreError, match="x"):
        report_of(tmp_path / "x")


def test_a_page_never_replaces_what_it_is_of_nor_what_is_no_file(tmp_path: Path) -> None:
    run = tmp_path / "a.jsonl"
    run.write_text("precious")
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UsageError, match="would be lost"):
        write_page("page", tmp_path / "link", (run,))
    with pytest.raises(UsageError, match="not a file"):
        write_page("page", tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):
        write_page("page", tmp_path / "none" / "a.html")
    assert run.read_text() == "precious"
    assert write_page("é\udc80", tmp_path / "b.html") == 3
    assert (tmp_path / "b.html").read_bytes() == "é?".encode()
