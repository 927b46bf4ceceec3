"""The page as people see it: in Chromium, on a desktop and a phone, dark, printed, by keyboard and to a screen reader.

The fixture `look` fails a test on any console message, error, or request beside the page itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tunebook.report import comparison_of, report_of, write_page

SCRIPT = "<script>document.title = 'owned'</script>"
ROWS = "#problems-t > tbody"
WHITE = "rgb(255, 255, 255)"

Look = Callable[..., Any]
Keep = Callable[[Any, str], None]


@pytest.fixture
def page_path(written: Any, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_page(report_of(written.usual()), path)
    return path


@pytest.fixture
def comparison_path(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "comparison.html"
    write_page(comparison_of(*two_runs), path)
    return path


def shown(page: Any, rows: str = ROWS) -> list[str]:
    """The keys of the rows that are to be seen, in their order."""
    return page.eval_on_selector_all(
        rows, "bodies => bodies.filter(b => b.checkVisibility()).map(b => b.rows[0].cells[0].textContent)"
    )


def row(page: Any, key: str) -> Any:
    return page.locator(ROWS).filter(has=page.get_by_role("button", name=key, exact=True))


def background(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def inked(page: Any, selector: str = "canvas") -> int:
    """How many pixels of a canvas are drawn on."""
    return page.eval_on_selector(
        selector,
        """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data
                           .filter((value, i) => i % 4 === 3 && value > 0).length""",
    )


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_nothing_is_wider_than_the_screen_and_every_chart_is_drawn(
    page_path: Path, comparison_path: Path, look: Look, keep: Keep, size: str, kind: str
) -> None:
    page = look(page_path if kind == "report" else comparison_path, size)
    if kind == "report":
        page.get_by_role("button", name="linear|N=8,K=8|bf16|M≤8").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    charts = page.locator("canvas")
    assert charts.count() == (5 if kind == "report" else 1)
    for number in range(charts.count()):
        charts.nth(number).evaluate("canvas => canvas.setAttribute('id', 'looked-at')")
        assert inked(page, "#looked-at") > 500
        charts.nth(number).evaluate("canvas => canvas.removeAttribute('id')")
    keep(page, f"{kind}_{size}")


def test_filters_narrow_the_problems_and_say_how_many_are_left(page_path: Path, look: Look) -> None:
    page = look(page_path)
    form = page.get_by_role("form", name="Filter the problems")
    assert len(shown(page)) == 8
    form.get_by_label("Op").select_option("norm")
    assert shown(page) == [f"norm|N=8,K=8|bf16|M≤{size}" for size in (1, 2, 4)]
    form.get_by_label("Result").select_option("left out")
    assert shown(page) == ["norm|N=8,K=8|bf16|M≤2"]
    assert form.get_by_role("status").inner_text() == "1 of 8 shown"
    form.get_by_role("button", name="Clear").click()
    form.get_by_role("status").filter(has_text="8 of 8 shown").wait_for()
    form.get_by_label("Search").fill("TILE=1")
    assert shown(page) == [f"linear|N=8,K=8|bf16|M≤{size}" for size in (1, 2, 4, 8, 16)]
    form.get_by_label("Status").select_option("unresolved")
    assert shown(page) == []


def test_headers_sort_by_figures_not_by_their_text(page_path: Path, look: Look) -> None:
    page = look(page_path)
    table = page.locator("#problems-t")
    header = table.get_by_role("columnheader", name="over default")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    speedups = table.locator("> tbody > tr > td:nth-child(4)").all_inner_texts()
    figures = [float(text.partition("×")[0]) for text in speedups if "×" in text]
    assert figures == sorted(figures, reverse=True)
    assert speedups[-1] == "–"
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    table.get_by_role("columnheader", name="problem").get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert shown(page)[:5] == [f"linear|N=8,K=8|bf16|M≤{size}" for size in (1, 2, 4, 8, 16)]


def test_a_problem_opens_with_its_samples_and_stays_open_when_sorted(page_path: Path, look: Look) -> None:
    page = look(page_path)
    button = page.get_by_role("button", name="linear|N=8,K=8|bf16|M≤8")
    button.focus()
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    opened = row(page, "linear|N=8,K=8|bf16|M≤8")
    timed = opened.get_by_role("table", name="Tactics that were timed")
    marks = {line.split("\t")[0]: line.split("\t")[1] for line in timed.locator("tbody tr").all_inner_texts()}
    assert marks == {
        "native[tile=1]": "winner",
        "native[tile=2]": "tied",
        "native[tile=3]": "slower",
        "default": "slower",
        "native[tile=9]": "did not race",
    }
    assert opened.get_by_role("img", name="Samples of every tactic").count() == 1
    page.locator("#problems-t").get_by_role("columnheader", name="spent").get_by_role("button").click()
    assert opened.locator("tr.detail").count() == 1
    button.click()
    assert opened.locator("tr.detail").count() == 0


def test_a_script_in_a_tactics_name_is_shown_as_text(page_path: Path, look: Look) -> None:
    page = look(page_path)
    for button in page.locator("button.open").all():
        button.click()
    for section in ("#summary", "#problems", row(page, "linear|N=8,K=8|bf16|M≤1")):
        found = page.locator(section) if isinstance(section, str) else section
        assert SCRIPT in found.inner_text().replace("\n", " ")
    assert page.title() == "tunebook: a-model"
    assert page.evaluate("document.scripts.length") == 3


def test_a_cell_of_the_heat_map_leads_to_its_problem_whatever_the_filters_say(page_path: Path, look: Look) -> None:
    page = look(page_path)
    page.get_by_label("Search").fill("norm")
    page.locator("#shapes").get_by_role("link", name="3.20").click()
    opened = row(page, "linear|N=8,K=8|bf16|M≤16")
    opened.locator("tr.detail").wait_for()
    assert len(shown(page)) == 8
    assert opened.locator("button.open").evaluate("button => button === document.activeElement")


def test_dark_where_the_reader_prefers_it(page_path: Path, look: Look, keep: Keep) -> None:
    page = look(page_path, dark=True)
    page.get_by_role("button", name="linear|N=8,K=8|bf16|M≤8").click()
    assert background(page) != WHITE
    assert contrast(page, "body") > 10
    assert contrast(page, ".s5") > 4.5
    keep(page, "report_dark")
    page.emulate_media(color_scheme="light")
    assert background(page) == WHITE
    assert contrast(page, ".s5") > 4.5


def contrast(page: Any, selector: str) -> float:
    """The contrast of text to its background, as the WCAG define it."""
    return page.eval_on_selector(
        selector,
        """element => {
             const light = (name) => {
               const [r, g, b] = getComputedStyle(element)[name].match(/[0-9.]+/g).map((v) => v / 255)
                 .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
               return 0.2126 * r + 0.7152 * g + 0.0722 * b;
             };
             const [a, b] = [light('color'), light('backgroundColor')].sort((x, y) => y - x);
             return (a + 0.05) / (b + 0.05);
           }""",
    )


def test_print_is_light_whole_and_without_controls(page_path: Path, look: Look) -> None:
    page = look(page_path, dark=True)
    page.get_by_role("button", name="linear|N=8,K=8|bf16|M≤8").click()
    dark = page.evaluate("Chart.getChart(document.querySelector('canvas')).data.datasets[0].backgroundColor[0]")
    page.emulate_media(media="print", color_scheme="dark")
    assert background(page) == WHITE
    for selector in ("nav", ".filters"):
        assert not page.locator(selector).first.is_visible()
    assert page.locator("#problems-t th.minor").first.is_visible()
    page.locator("html.printing").wait_for()
    light = page.evaluate("Chart.getChart(document.querySelector('canvas')).data.datasets[0].backgroundColor[0]")
    assert light != dark
    assert page.pdf()[:5] == b"%PDF-"
    page.emulate_media(media="screen", color_scheme="dark")
    page.locator("html:not(.printing)").wait_for()
    assert background(page) != WHITE


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_screen_reader_finds_its_way(page_path: Path, comparison_path: Path, look: Look, kind: str) -> None:
    page = look(page_path if kind == "report" else comparison_path)
    for button in page.locator("button.open").all():
        button.click()
    assert page.locator("html[lang=en]").count() == 1
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1, landmark
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "found => found.map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    lacking = page.evaluate(
        """() => [
             ...[...document.querySelectorAll('section')].filter((s) => !s.ariaLabelledByElements?.length),
             ...[...document.querySelectorAll('table')].filter((t) => !t.caption?.textContent.trim() || !t.tHead),
             ...[...document.querySelectorAll('th')].filter((h) => !['col', 'row'].includes(h.scope)),
             ...[...document.querySelectorAll('canvas')].filter((c) => c.getAttribute('role') !== 'img' || !c.ariaLabel),
             ...[...document.querySelectorAll('input, select')].filter((i) => !i.labels.length),
             ...[...document.querySelectorAll('button')].filter((b) => !b.textContent.trim()),
             ...[...document.querySelectorAll('a[href^="#"]')].filter((a) => !document.getElementById(a.hash.slice(1))),
             ...[...document.querySelectorAll('[id]')].filter((e) => document.querySelectorAll(`[id="${e.id}"]`).length > 1),
           ].map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert lacking == []


def test_without_scripts_the_tables_remain(page_path: Path, look: Look) -> None:
    page = look(page_path, java_script_enabled=False)
    assert page.locator(ROWS).count() == 8
    assert page.locator(ROWS).last.is_visible()
    assert not page.get_by_role("form").is_visible()


def test_a_comparison_filters_what_flipped_or_became_worse(comparison_path: Path, look: Look) -> None:
    page = look(comparison_path)
    rows = "#changes-t > tbody"
    assert len(shown(page, rows)) == 5
    page.get_by_label("Result").select_option("worse")
    assert shown(page, rows) == ["linear|N=8,K=8|bf16|M≤4"]
    page.get_by_label("Winner").select_option("flipped")
    assert shown(page, rows) == []


def test_a_cache_and_an_empty_run_are_pages_without_complaints(
    written: Any, cache_path: Path, tmp_path: Path, look: Look
) -> None:
    for path in (cache_path, written.run([], name="empty.jsonl")):
        write_page(report_of(path), tmp_path / f"{path.stem}.html")
    page = look(tmp_path / "winners.html")
    page.locator("button.open").click()
    assert page.get_by_role("img", name="The best tactics against the winner").count() == 1
    assert "No problem was settled." in look(tmp_path / "empty.html").locator("#summary").inner_text()


def test_a_large_run_opens_and_filters(written: Any, tmp_path: Path, look: Look, keep: Keep) -> None:
    path = tmp_path / "large.html"
    write_page(report_of(written.large(200, 20, 30)), path)
    page = look(path, "phone")
    page.get_by_role("form").get_by_label("Op").select_option("op3")
    assert len(shown(page)) == 50
    page.locator("button.open:visible").first.click()
    assert page.locator("tr.detail table").first.locator("tbody tr").count() == 20
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("tr.detail").scroll_into_view_if_needed()
    keep(page, "large_phone")
