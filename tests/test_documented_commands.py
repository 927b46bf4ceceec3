"""Every command in the documentation is run, page by page, as a reader would who types one after the other.

What takes long is made small: a tiny model, a small budget, few sizes.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tunebook.engine import models
from tunebook.engine.models import random_model, tiny_config
from tunebook.store import read_cache

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.pages import DOCS, README, Command, blocks, commands, name_of  # noqa: E402 - found from the root
from tests.stage import Stage  # noqa: E402

#: Programs of others, which are not run here: they install, build or profile (after making a pipe where there is none).
OTHERS = {"[", "apt-get", "docker", "git", "pip", "perf", "vtune", "nsys", "ncu"}
#: Programs that tests/test_docs.py runs.
RUN_ELSEWHERE = {"examples/own_op.py"}
#: Exit codes that are no failure, where not 0 alone.
FINE = {"diff": {0, 1}}
SIZES = ("--decode", "1", "--prefill", "2")
#: Seconds of a tuning: enough for the few tactics that are left to settle something, also on a machine that is busy.
BUDGET = "2"
#: The runners of the files that are given by --with.
OWN = {"my_kernels.py": "two_halves", "examples/my_linear.py": "my_linear"}
_RUN_FILE = re.compile(r"(?:.*/)?runs/\w+\.\d{8}_\d{6}(?:-\d+)?\.jsonl")
MODELS = {*models.names(), "PATH"}


@pytest.fixture(scope="module")
def home(
    command_stage: Stage, cli_environment: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cache directory of two finished tunings, for each page a copy."""
    folder = tmp_path_factory.mktemp("documented")
    for more in ((), ("--fresh",)):
        arguments = ("tune", "tiny-moe", *SIZES, "--budget", BUDGET, "--only-runner", "torch", *more)
        environment = cli_environment(folder / "home")
        assert command_stage.run(*arguments, environment=environment, directory=folder).code == 0
    return folder / "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model of random weights with a tokenizer, in place of one that reads prompts."""
    config = tiny_config("mixtral")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    random_model(config, "float32").save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def small(command: Command, checkpoint: Path, key: str) -> list[str]:
    """The arguments of a command so that it takes seconds. `key` is a problem that the finished tunings know."""
    name, *rest = command.arguments
    if name == "repro":
        problem, *others = rest
        whole = problem.count("|") >= 3  # such a key says itself what is to be made; a part of one is looked up
        if "--seconds" in others:
            others[others.index("--seconds") + 1] = "0.2"
        timed = [] if {"--calls", "--seconds"} & set(others) else ["--calls", "5"]
        return [name, problem if whole else key, *others, *timed]
    if name == "generate":
        return [name, *(str(checkpoint) if word in MODELS else word for word in rest)]
    if name not in ("tune", "diff") or "--resume" in rest:
        return [name, *rest]
    small = ["tiny-moe" if word in MODELS else word for word in rest]
    for option, value in (("--budget", BUDGET), ("--decode", "1"), ("--prefill", "2")):
        if option in small:
            small[small.index(option) + 1] = value
        elif name == "tune":
            small += [option, value]
    if name == "tune" and "tiny-moe" not in small:
        small.insert(0, "tiny-moe")
    if name == "tune" and not {"--only-runner", "--batch-invariant"} & set(small):
        small += [] if {"--op", "--skip-op"} & set(small) else ["--op", "experts"]
        for runner in ("torch", *(OWN[word] for word in small if word in OWN)):
            small += ["--only-runner", runner]
    return [name, *small]


def prepare(page: Path, directory: Path, home: Path) -> None:
    """What a reader of the page has in the working directory: a cache, runs of the names used, examples, a file of kernels."""
    (cache,) = home.glob("autotune/*/winners.json")
    older, newer = sorted(cache.parent.glob("runs/*.jsonl"))
    for name in ("winners.json", "tuned.json"):
        shutil.copy(cache, directory / name)
    (directory / "examples").symlink_to(ROOT / "examples")
    (runs,) = (ROOT / "tests" / "interop" / "fixtures" / "sglang").rglob("runs")
    shutil.copytree(runs.parent, directory, dirs_exist_ok=True)  # SGLang's caches, of which docs/formats.md tells
    for body in blocks(ROOT / "docs" / "own-op.md", "python"):
        if "kernels.linear.runner" in body:
            (directory / "my_kernels.py").write_text(body, encoding="utf-8")
    named = {}
    for command in commands(page):
        for word in command.arguments:
            if _RUN_FILE.fullmatch(word):
                named[word] = "--resume" in command.arguments
    for word, interrupted in named.items():
        path = directory / word
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (older if word == min(named) else newer).read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1] if interrupted else lines))  # without its last line a run was interrupted


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in (README, *DOCS) if list(commands(page))], ids=name_of)
def test_every_command_of_a_page_runs(
    page: Path,
    command_stage: Stage,
    home: Path,
    checkpoint: Path,
    cli_environment: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    mine, directory = tmp_path / "home", tmp_path / "work"
    shutil.copytree(home, mine)
    directory.mkdir()
    prepare(page, directory, mine)
    key = min(key for key in read_cache(directory / "winners.json", None).verdicts if key.startswith("linear|"))
    for command in commands(page):
        if command.program in OTHERS:
            continue
        if command.program == "python":
            assert set(command.arguments) <= RUN_ELSEWHERE, command
            continue
        assert command.program == "tunebook", f"{command}: run it here, or name its program in OTHERS"
        variables = dict(text.split("=", 1) for text in command.variables)
        environment = cli_environment(mine, **variables)
        options: dict[str, Any] = {"environment": environment, "directory": directory}
        if "--wait" in command.arguments:  # for Enter, which somebody presses
            options |= {"streams": "terminal", "typed": b"\n"}
        ended = command_stage.run(*small(command, checkpoint, key), **options)
        output = f"{command}\n{ended.out.decode()}\n{ended.err.decode()}"
        assert ended.code in FINE.get(command.arguments[0], {0}), output
        assert b"Traceback" not in ended.out + ended.err, output
