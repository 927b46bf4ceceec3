"""Every command on a narrow terminal, in a pipe, with nobody reading, in Chinese, and where there are neither colours nor signs.

A command that is added is tested by itself; all it needs is a line in `EXAMPLES`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tunebook.cli import app
from tunebook.cli._text import FALLBACKS
from tunebook.engine.models import random_model, tiny_config
from tunebook.store import read_cache

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.stage import Ended, Stage, Streams  # noqa: E402 - found from the root

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)

#: What is typed for each command, the last line being looked at; what comes before it, perhaps with a variable, prepares that.
#: Words in braces are fields of `Place`; each time the place is as new.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "convert": ("convert {run} --to t4 -o run.t4.json",),
    "coverage": ("TUNEBOOK_COVERAGE=1 generate {checkpoint} --prompt w1 --max-new-tokens 4", "coverage"),
    "diff": ("diff {older} {run}",),
    "doctor": ("doctor",),
    "env": ("env",),
    "export": ("export -o book.bundle",),
    "generate": ("generate {checkpoint} --prompt w1 --max-new-tokens 4",),
    "history": ("history",),
    "import": ("export -o book.bundle", "import book.bundle --yes"),
    "merge": ("merge {cache} {older} -o merged.json",),
    "pin": ("pin linear default",),
    "pins": ("pin linear default", "pins"),
    "promote": ("promote {older} --yes",),
    "report": ("report {run} -o page.html",),
    "repro": ("repro {key} default --calls 4",),
    "rollback": ("promote {older} --yes", "rollback --yes"),
    "show": ("show {run}",),
    "tune": ("tune tiny-moe --decode 1 --prefill 2 --replay",),  # measuring anew, it would tell of something else
    "unpin": ("pin linear default", "unpin linear"),
}
#: Exit codes other than 0 that are no failure.
FINE = {"diff": {0, 1}}
#: What tells of times, or measures anew: the figures differ each time, the words do not.
MEASURES = {"coverage", "doctor", "generate", "promote", "repro", "rollback", "tune"}
#: What a figure may stand before, as large as it happens to be.
UNITS = {"ns", "µs", "us", "ms", "s"}
WIDTH = 60
#: A locale without any sign but ASCII: else Python takes UTF-8 for the C locale.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
#: What a command needs of the environment; the terminal that the tests run on is no part of it.
KEPT = ("HOME", "PATH", "PYTHONPATH", "TMPDIR", "TUNEBOOK_CACHE_DIR", "TUNEBOOK_ISOLATE", "TUNEBOOK_THREADS")
#: What a reader copies from a line: such a line is folded by the terminal, which then copies it whole.
COPIED = re.compile(r"[/|=`]|--\w|\btunebook \w")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A directory with the cache directory of a finished tuning, and what the examples name of it."""

    directory: Path
    home: Path
    run: Path
    older: Path
    cache: Path
    checkpoint: Path
    key: str


@pytest.fixture(scope="module")
def original(
    command_stage: Stage,
    first: tuple[Path, dict[str, Any], str],
    variables: Callable[..., dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A cache directory with two runs of different outcome whose notes are Chinese, and a checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("original")
    home = folder / "缓存"
    shutil.copytree(first[0], home)
    (newer,) = home.glob("autotune/*/runs/*.jsonl")
    narrow = "tune tiny-moe --decode 1 --prefill 2 --fresh --op linear --only-runner torch --budget 2"
    assert command_stage.run(*narrow.split(), environment=variables(home), directory=folder).code == 0
    (older,) = set(newer.parent.iterdir()) - {newer}
    before = {"started": "2026-01-01T00:00:00", "note": "更新之前：默认的内核"}
    for run, name, changes in (
        (newer, newer.name, {"note": "更新之后"}),
        (older, "winners.20260101_000000.jsonl", before),
    ):
        header, rest = run.read_bytes().split(b"\n", 1)
        run.unlink()
        run.with_name(name).write_bytes(json.dumps({**json.loads(header), **changes}).encode() + b"\n" + rest)
    config = tiny_config("mixtral")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    random_model(config, "float32").save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder / "model")
    return folder


@pytest.fixture
def make_place(original: Path, tmp_path: Path) -> Callable[[], Place]:
    def make() -> Place:
        directory = tmp_path / "here"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(original, directory)
        (cache,) = directory.glob("缓存/autotune/*/winners.json")
        older, run = sorted(cache.parent.glob("runs/*.jsonl"))
        return Place(
            directory=directory,
            home=directory / "缓存",
            run=run,
            older=older,
            cache=cache,
            checkpoint=directory / "model",
            key=min(key for key in read_cache(cache, None).verdicts if key.startswith("linear|")),
        )

    return make


@pytest.fixture(scope="module")
def variables(cli_environment: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    """What a command gets of the environment, and what is given beside it."""

    def make(home: Path, **given: str) -> dict[str, str]:
        return {**{k: v for k, v in cli_environment(home).items() if k in KEPT}, **given}

    return make


@pytest.fixture
def typed(
    command_stage: Stage, make_place: Callable[[], Place], variables: Callable[..., dict[str, str]]
) -> Callable[..., Ended]:
    """``typed(name, streams, *more, …)``: what becomes of the example of a command, in a place as new."""

    def run(name: str, streams: Streams, *more: str, given: dict[str, str] | None = None, **options: Any) -> Ended:
        assert name in EXAMPLES, f"tests/e2e/test_every_command.py: EXAMPLES needs a line for `tunebook {name}`"
        place = make_place()
        environment = variables(place.home, **(given or {"LANG": "zh_CN.UTF-8", "TERM": "xterm-256color"}))
        options = {"environment": environment, "directory": place.directory, **options}
        *before, last = EXAMPLES[name]
        for line in before:
            words = [word.format(**vars(place)) for word in line.split()]
            given = dict(word.split("=") for word in words if word.startswith("TUNEBOOK_"))
            arguments = [word for word in words if not word.startswith("TUNEBOOK_")]
            ended = command_stage.run(*arguments, **{**options, "environment": {**environment, **given}})
            assert ended.code == 0, ended.err.decode()
        ended = command_stage.run(
            *(word.format(**vars(place)) for word in last.split()), *more, streams=streams, **options
        )
        fine = {0} if streams == "closed" else FINE.get(name, {0})
        assert ended.code in fine, f"exit code {ended.code}\n{ended.out.decode()}\n{ended.err.decode()}"
        return ended

    return run


def plain(data: bytes) -> list[str]:
    """The lines that a terminal shows, without colours and movements of the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
    return text.replace("\r", "\n").splitlines()


def colours(data: bytes) -> list[bytes]:
    """The sequences that set a colour; bold and dim are none."""
    colour = re.compile(rb"3[0-8]|4[0-8]|9[0-7]|10[0-7]")
    found = re.findall(rb"\x1b\[([0-9;]*)m", data)
    return [codes for codes in found if any(colour.fullmatch(code) for code in codes.split(b";"))]


def telling(name: str, text: str) -> set[str]:
    """The words of piped output that a terminal must show too; none of the heads of tables, which paragraphs do without."""
    lines = text.splitlines()
    heads = {i + 2 for i, line in enumerate(lines[:-2]) if not line and lines[i + 1] and lines[i + 2]}
    found = {word for i, line in enumerate(lines) if i not in heads for word in line.split()}
    if name in MEASURES:
        found = {word for word in found - UNITS if not re.search(r"\d", word)}
    return found - {"-"}


def shown(lines: list[str]) -> str:
    """All that is shown, without the blanks and folds that a width brings: as it stands, and down each column of a table."""
    columns: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        cells = re.split(r"(?:^| )[│┃|](?= |$)", line)
        for i, cell in enumerate(cells if len(cells) > 2 else ()):
            columns[i].append(cell)
    return "\n".join(re.sub(r"\s+", "", "".join(part)) for part in (lines, *columns.values()))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_narrow_terminal_nothing_is_wider_and_nothing_is_cut(
    name: str, encoding: str, typed: Callable[..., Ended]
) -> None:
    piped = typed(name, "pipes", encoding=encoding)
    assert b"\x1b" not in piped.out + piped.err, "a pipe gets no colours"
    text = piped.out.decode()
    given = {"LANG": "zh_CN.UTF-8"} if encoding == "utf-8" else {**ASCII, "NO_COLOR": "1"}
    ended = typed(name, "terminal", columns=WIDTH, encoding=encoding, given={**given, "TERM": "xterm-256color"})
    if encoding == "ascii":
        assert ended.out.isascii()
        assert not colours(ended.out)
    lines = plain(ended.out)
    whole = {re.sub(r"\d+", "0", line) for line in text.splitlines()}
    for line in lines:
        if cell_len(line) > WIDTH:
            assert COPIED.search(line), f"prose of {cell_len(line)} columns: {line}"
            assert re.sub(r"\d+", "0", line) in whole, f"{cell_len(line)} columns: {line}"
    there = shown(lines)
    assert not [word for word in telling(name, text) if word not in there], "\n".join(lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_where_nobody_reads_nothing_is_said_of_it(name: str, typed: Callable[..., Ended]) -> None:
    ended = typed(name, "closed")
    said = [
        line for line in ended.err.decode().splitlines() if not re.match(r"(INFO|WARNING) |tunebook: (?!error)", line)
    ]
    assert not said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_narrow_terminal_and_names_every_option(
    name: str, encoding: str, command_stage: Stage, tmp_path: Path
) -> None:
    given = {"TERM": "xterm-256color", "HOME": str(tmp_path)}
    where: dict[str, Any] = {"environment": given, "directory": tmp_path, "encoding": encoding}
    ended = command_stage.run(name, "--help", streams="terminal", columns=WIDTH, **where)
    assert ended.code == 0
    lines = plain(ended.out)
    assert max(map(cell_len, lines)) <= WIDTH
    assert encoding == "utf-8" or ended.out.isascii()
    there = shown(lines)
    for parameter in GROUP.commands[name].params:
        words = [flag for flag in parameter.opts if flag.startswith("-")] + (
            getattr(parameter, "help", None) or ""
        ).split()
        for sign, spelt in FALLBACKS.items() if encoding == "ascii" else ():
            words = [word.replace(sign, spelt) for word in words]
        assert [word for word in words if word not in there] == [], "\n".join(lines)


def test_a_document_is_the_same_in_every_encoding(typed: Callable[..., Ended]) -> None:
    documents = [typed("show", "pipes", "--json", encoding=encoding).out for encoding in ("utf-8", "ascii", "gbk")]
    one, other, third = map(json.loads, documents)
    assert one == other == third
    assert any("≤" in key for key in one["verdicts"])
    assert documents[1].isascii()


def test_signs_that_an_encoding_lacks_are_spelt_out_and_the_others_stay(typed: Callable[..., Ended]) -> None:
    code_page = typed("show", "pipes", encoding="gbk").out.decode("gbk")
    assert "M≤1 " in code_page
    assert "更新之后" in code_page
    assert re.search(r"\d× \[\d", code_page)
    assert " us " in code_page, "this code page has a Greek mu, but no micro sign"
    bare = typed("show", "pipes", encoding="ascii").out.decode("ascii")
    assert "M<=1 " in bare
    assert re.search(r"\dx \[\d", bare)
    assert "\\u66f4\\u65b0" in bare


def test_columns_stand_below_each_other_where_a_character_takes_two(
    command_stage: Stage, make_place: Callable[[], Place], variables: Callable[..., dict[str, str]]
) -> None:
    place = make_place()
    header, rest = place.older.read_bytes().split(b"\n", 1)
    place.older.write_bytes(json.dumps({**json.loads(header), "model": "模型甲"}).encode() + b"\n" + rest)
    ended = command_stage.run("history", environment=variables(place.home), directory=place.directory)
    head, *rows = ended.out.decode().splitlines()[-3:]
    at = cell_len(head[: head.index("policy")])
    assert "模型甲" in rows[1]
    assert [cell_len(re.split("fresh|reuse", row)[0]) for row in rows] == [at, at]


def test_good_and_bad_have_their_colours(typed: Callable[..., Ended]) -> None:
    output = typed("show", "terminal", columns=400).out
    found = set(re.findall(rb"\x1b\[(\d+)m(proven|unresolved|faster|slower|no difference) *\x1b", output))
    expected = {b"proven": b"32", b"faster": b"32", b"slower": b"31", b"unresolved": b"33", b"no difference": b"33"}
    assert found
    assert all(expected[word] == code for code, word in found)


@pytest.mark.parametrize("locale", [{"LANG": "zh_CN.UTF-8"}, {"LC_ALL": "C"}, ASCII], ids=["zh_CN", "C", "ASCII"])
def test_an_interpreter_of_its_own_in_each_locale(
    locale: dict[str, str], make_place: Callable[[], Place], variables: Callable[..., dict[str, str]]
) -> None:
    """The stage gives the encoding of the streams; here the locale does."""
    place = make_place()
    done = subprocess.run(
        [sys.executable, "-m", "tunebook", "show", str(place.run), "--problem", "linear"],
        env=variables(place.home, **locale),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"M<=1" in done.stdout) == (locale is ASCII)
    assert ("M≤1".encode() in done.stdout) == (locale is not ASCII)


def test_a_reader_that_leaves_after_one_line(
    make_place: Callable[[], Place], variables: Callable[..., dict[str, str]]
) -> None:
    place = make_place()
    command = f"'{sys.executable}' -m tunebook show '{place.run}' --json | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command], env=variables(place.home), capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
