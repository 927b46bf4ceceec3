"""The documentation is true: its examples run, its commands parse, its links lead somewhere, its constants are the code's."""

from __future__ import annotations

import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import typer

import tunebook as tb
from tunebook.cli import app
from tunebook.cli._run import EXIT_CODES
from tunebook.engine import models
from tunebook.envs import Envs
from tunebook.records import CacheDocument, RunLine
from tunebook.store import read_cache, read_run

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.pages import CHINESE, DOCS, PAGES, README, blocks, commands, name_of, prose  # noqa: E402 - found from the root

OWN_OP = ROOT / "examples" / "own_op.py"


# Python


#: Seconds of a tuning for which a page gives more.
BUDGET_S = 3


def run_blocks(page: Path, directory: Path, **given: Any) -> dict[str, Any]:
    """Run all Python blocks of a page as one file, as a reader would who types them one after the other."""
    file = directory / f"{page.stem}_blocks.py"
    code = "\n\n".join(blocks(page, "python"))
    file.write_text(re.sub(r"\bbudget_s=\d+", f"budget_s={BUDGET_S}", code), encoding="utf-8")
    return runpy.run_path(str(file), init_globals=given)


@pytest.fixture
def given(tiny_model: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """What the pages take as the reader's own: a model with inputs, and a run file of an earlier tuning."""
    model = tiny_model().model

    @tb.op("demo::earlier", buckets={"x": {0: tb.pow2(max=1)}})
    def earlier(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    with tb.autotune(cache=tmp_path / "earlier.json", budget_s=5) as tuning:
        earlier(torch.ones(1, 4))
    return {"model": model, "batch": {"input_ids": torch.tensor([[1, 2, 3, 4]])}, "run_path": tuning.run}


@pytest.mark.slow
@pytest.mark.usefixtures("clean_ops")
@pytest.mark.parametrize("page", [p for p in (README, *DOCS) if blocks(p, "python")], ids=name_of)
def test_python_blocks_run(
    page: Path,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEBOOK_BUDGET_S", str(BUDGET_S))
    run_blocks(page, tmp_path, **given)
    forwards = [module for module in given["model"].modules() if "forward" in vars(module)]
    assert not forwards, "an example leaves the model attached"
    if any("tuned.json" in block for block in blocks(page, "python")):
        assert read_cache(tmp_path / "tuned.json", None).verdicts
    assert "Traceback" not in capsys.readouterr().err


def test_both_readmes_hold_the_same_code() -> None:
    for language in ("python", "sh"):
        assert blocks(README, language), f"no {language} block found"
        assert blocks(CHINESE, language) == blocks(README, language)


@pytest.mark.parametrize("page", [README, CHINESE], ids=name_of)
def test_the_readme_shows_the_example_as_it_is(page: Path) -> None:
    assert OWN_OP.read_text(encoding="utf-8") in blocks(page, "python")


def test_the_example_tunes_every_bucket_and_starts_from_the_cache_the_second_time(
    cli_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", str(OWN_OP)],
            env=cli_environment(tmp_path / "home"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    (cache,) = (tmp_path / "home").glob("autotune/*/winners.json")
    (run,) = cache.parent.glob("runs/*.jsonl")
    verdicts = read_cache(cache, None).verdicts
    assert sorted(int(key.rpartition("≤")[2]) for key in verdicts) == [2**i for i in range(10)]
    assert all(verdict.offered.keys() == {"default", "fused", "blocked"} for verdict in verdicts.values())
    assert not any(verdict.rejected for verdict in verdicts.values())
    assert read_run(run).verdicts == verdicts


@pytest.mark.usefixtures("clean_ops")
def test_the_kernel_of_ones_own_is_right(tmp_path: Path) -> None:
    (kernel,) = (b for b in blocks(ROOT / "docs" / "own-op.md", "python") if "kernels.linear.runner" in b)
    (tmp_path / "my_kernels.py").write_text(kernel, encoding="utf-8")
    runpy.run_path(str(tmp_path / "my_kernels.py"))
    with tb.autotune(only_runners=("two_halves",), budget_s=5) as tuning, torch.inference_mode():
        for bias in (None, torch.randn(6)):
            tb.kernels.linear(torch.randn(4, 8), torch.randn(6, 8), bias)
    assert tuning.run is not None
    run = read_run(tuning.run)
    assert {line.trial.tactic for line in run.trials} == {"default", "two_halves[dim=0]", "two_halves[dim=1]"}
    assert not any(verdict.rejected for verdict in run.verdicts.values())


# Commands


def check_command(arguments: list[str]) -> None:
    """Parse a command line without running it. Raises what typer makes of a wrong one."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    if name.startswith("-"):
        group.make_context("tunebook", arguments)
    else:
        group.commands[name].make_context(name, rest)


def options(command: str) -> set[str]:
    group: Any = typer.main.get_command(app)
    return {flag for parameter in group.commands[command].params for flag in parameter.opts if flag.startswith("--")}


@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=name_of)
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        if command.program == "tunebook":
            try:
                check_command(list(command.arguments))
            except Exception as error:
                raise AssertionError(f"{command}: {error}") from error
        assert {text.partition("=")[0] for text in command.variables} <= known_variables()


@pytest.mark.parametrize(
    "arguments",
    [["tune", "--nonsense"], ["tune", "--budget", "much"], ["generate", "tiny-moe"], ["sing"]],
    ids=" ".join,
)
def test_a_wrong_command_would_be_seen(arguments: list[str]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - typer's own classes are not public; any refusal will do
        check_command(arguments)


@pytest.mark.parametrize("page", [README, CHINESE], ids=name_of)
def test_the_readme_lists_commands_options_exit_codes_and_models(page: Path) -> None:
    text = prose(page)
    rows = dict(re.findall(r"^\| `tunebook (\w+).*?` \| (.*) \|$", text, re.MULTILINE))
    group: Any = typer.main.get_command(app)
    assert rows.keys() == group.commands.keys()
    assert set(re.findall(r"`(--[\w-]+)`", rows["tune"])) == options("tune") - {"--json"}
    assert all("--json" in options(command) for command in rows)
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == EXIT_CODES.keys()
    listed = re.findall(r"^\| `([a-z0-9]+-[a-z0-9-]+)`.* \|$", text, re.MULTILINE)
    assert tuple(listed) == models.names()


def known_variables() -> set[str]:
    return {field.name for field in Envs.fields()} | {a.name for field in Envs.fields() for a in field.aliases}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_and_targets_exist(page: Path) -> None:
    text = "\n".join([prose(page), *blocks(page, "sh"), *blocks(page, "python")])  # what is printed may name others
    assert set(re.findall(r"\bTUNEBOOK_[A-Z]\w*|\b\w+_AUTOTUNE_CACHE\b", text)) <= known_variables()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [README, CHINESE], ids=name_of)
def test_output_stands_between_markers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"<!-- output: (\w+) -->\n```text\n(.+?)```\n<!-- /output -->", text, re.DOTALL)
    assert [name for name, _ in found] == ["run", "rerun", "test"]
    assert text.count("<!-- /output -->") == len(found)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading; there are {sorted(anchors(file))}"


def linked(page: Path) -> set[Path]:
    """The pages that a page links to."""
    targets = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", prose(page))
    return {(page.parent / target).resolve() for target in targets if not target.startswith("https://")} & set(PAGES)


@pytest.mark.parametrize("readme", [README, CHINESE], ids=name_of)
def test_every_page_can_be_reached_from_the_readme(readme: Path) -> None:
    reached: set[Path] = set()
    ahead = {readme}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead |= linked(page) - reached
    assert reached >= set(DOCS)


def test_every_page_is_in_the_list_of_pages() -> None:
    index = ROOT / "docs" / "index.md"
    assert linked(index) >= set(DOCS) - {index}


# What the pages say of the code

_CONSTANT = re.compile(r"^ *\| `([a-z_.]+)\.([A-Z][A-Z_]+)` \| (.+?) \|", re.MULTILINE)
QUOTED = [(name_of(page), *found) for page in DOCS for found in _CONSTANT.findall(page.read_text(encoding="utf-8"))]


def number(text: str) -> float:
    """``0.05``, ``ln 1.01``, ``64 MiB``."""
    if text.startswith("ln "):
        return math.log(float(text.removeprefix("ln ")))
    if text.endswith(" MiB"):
        return float(text.removesuffix(" MiB")) * 2**20
    return float(text)


@pytest.mark.parametrize(("page", "module", "name", "value"), QUOTED, ids=[f"{m}.{n}" for _, m, n, _ in QUOTED])
def test_constants_are_the_codes(page: str, module: str, name: str, value: str) -> None:
    assert getattr(import_module(f"tunebook.{module}"), name) == number(value), page


@pytest.mark.parametrize("package", ["measure", "stats", "plan", "search", "tuner"])
def test_no_constant_of_the_measurement_is_left_out(package: str) -> None:
    found = set()
    for file in (ROOT / "src" / "tunebook" / package).glob("_[a-z]*.py"):
        module = import_module(f"tunebook.{package}.{file.stem}")
        assigned = set(re.findall(r"^([A-Z][A-Z_]+)\b.* = ", file.read_text(encoding="utf-8"), re.MULTILINE))
        found |= {
            (f"{package}.{file.stem}", name) for name in assigned if isinstance(getattr(module, name), int | float)
        }
    assert found
    assert found <= {(module, name) for page, module, name, _ in QUOTED if page == "docs/measurement.md"}


def test_tolerances_are_the_codes() -> None:
    from tunebook.measure._compare import TOLERANCES

    text = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    rows = re.findall(r"^ *\| `(b?float\d+)` \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert {f"torch.{dtype}": (float(row), float(element)) for dtype, row, element in rows} == TOLERANCES


def test_the_files_shown_are_files_of_ours() -> None:
    cache, run = blocks(ROOT / "docs" / "files.md", "json")
    document = msgspec.json.decode(cache, type=CacheDocument)
    assert document.verdicts
    shown = set(json.loads(cache)["verdicts"].popitem()[1])
    lines: list[RunLine] = [msgspec.json.decode(line, type=RunLine) for line in run.splitlines()]
    assert [type(line).__name__ for line in lines] == [
        "Header", "ProblemLine", "TrialLine", "PassedLine", "RaceLine", "SampleLine", "SampleLine", "OutLine", "Footer"
    ]  # fmt: skip
    text = prose(ROOT / "docs" / "files.md")
    for record in (document, next(iter(document.verdicts.values())), *lines):
        for field in record.__struct_fields__:
            assert f"`{field}`" in text, f"field {field} of {type(record).__name__} is not described"
    assert shown <= set(next(iter(document.verdicts.values())).__struct_fields__)
