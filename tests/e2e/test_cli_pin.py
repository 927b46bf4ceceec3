"""`tunebook pin`, `unpin` and `pins`, and what `show` says serves: a pin, the cache, or the default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunebook as tb
from tunebook.dispatch import OPS
from tunebook.records import Problem, Tactic
from tunebook.store import pins_path, read_pins

Cli = Callable[..., Any]
Complaint = Callable[[Any], str]


class Book:
    """A tuned cache of a tiny op in which `quick` won, and the commands that look at it."""

    def __init__(self, demo: Any, cli: Cli, folder: Path) -> None:
        self.demo, self._cli, self.folder = demo, cli, folder
        self.cache = folder / "own.json"
        self.pins = pins_path(self.cache)
        self.scale = demo.op(winner="quick")
        self.scale.tune(cache=self.cache)

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        where = () if "show" in arguments else ("--cache", self.cache)
        return self._cli(self.folder / "home", *arguments, *where, code=code)

    def serving(self) -> dict[str, tuple[str, str, str]]:
        """By problem, what serves, by what, and why."""
        rows = json.loads(self("show", self.cache, "--json").stdout)["serving"]
        return {row["problem"]: (row["tactic"], row["by"], row["why"]) for row in rows}


@pytest.fixture
def book(demo: Any, cli_inside: Cli, tmp_path: Path) -> Book:
    return Book(demo, cli_inside, tmp_path)


def serve(book: Book, restart: Callable[[], None], rows: int) -> str:
    """What a new process serves."""
    restart()
    with tb.autotune(tune_mode=False, cache=book.cache):
        pass
    served: str = book.scale(rows)
    return served


def test_a_pin_serves_and_what_was_measured_serves_again_without_it(book: Book, restart: Callable[[], None]) -> None:
    demo = book.demo
    assert serve(book, restart, 2) == "quick"
    told = book("pin", f"{demo.OP}@M≤2", "default").stdout
    assert told == f"{book.pins}: {demo.OP}@M≤2 = default; it serves 1 problem of the cache\n"
    assert [serve(book, restart, rows) for rows in (2, 4)] == ["default", "quick"]
    document = json.loads(book("pin", demo.OP, "default", "--json").stdout)
    assert document == {"path": str(book.pins), "pinned": demo.OP, "tactic": "default", "serves": 3, "refused": {}}
    book("pin", demo.key(4), demo.QUICK)
    assert [serve(book, restart, rows) for rows in (1, 2, 4)] == ["default", "default", "quick"]
    listed = json.loads(book("pins", "--json").stdout)["pins"]
    assert [(pin["target"], pin["tactic"], pin["serves"], pin["wrong"]) for pin in listed] == [
        (demo.OP, "default", 1, ""),
        (f"{demo.OP}@M≤2", "default", 1, ""),
        (demo.key(4), demo.QUICK, 1, ""),
    ]
    assert f"{demo.OP} is not pinned to default any more" in book("unpin", demo.OP).stdout
    assert json.loads(book("unpin", f"{demo.OP}@M≤2", "--json").stdout)["left"] == 1
    assert [serve(book, restart, rows) for rows in (1, 2, 4)] == ["quick"] * 3
    book("unpin", demo.key(4))
    assert not book.pins.exists()
    assert "0 pins; a pin goes before the cache, and the cache before the default" in book("pins").stdout


def test_comments_and_order_of_the_file_survive(book: Book) -> None:
    text = f'# mine\n[pins]\n"{book.demo.OP}" = "default"  # until Friday\n# the rest\n"other" = "torch"\n'
    book.pins.write_text(text)
    book("pin", book.demo.key(4), book.demo.QUICK)
    assert book.pins.read_text() == f'{text}"{book.demo.key(4)}" = "{book.demo.QUICK}"\n'
    book("unpin", book.demo.key(4))
    assert book.pins.read_text() == text


def test_show_says_which_serves_and_why(book: Book) -> None:
    demo = book.demo
    by_verdict = (demo.QUICK, "cache", "its verdict")
    assert book.serving() == {demo.key(rows): by_verdict for rows in (1, 2, 4)}
    rule = "a pin goes before the cache, and the cache before the default"
    assert f"served: 3 by the cache; {rule}" in book("show", book.cache).stdout
    book("pin", f"{demo.OP}@M≤2", "default")
    book("pin", demo.key(8), demo.QUICK)
    assert book.serving() == {
        demo.key(1): by_verdict,
        demo.key(2): ("default", "pin", f"pin {demo.OP}@M≤2"),
        demo.key(4): by_verdict,
        demo.key(8): (demo.QUICK, "pin", f"pin {demo.key(8)}"),
    }
    told = book("show", book.cache).stdout
    assert f"served: 2 by a pin, 2 by the cache; {rule}" in told
    (row,) = [line for line in told.splitlines() if line.startswith(demo.key(2)) and "pin" in line]
    assert row.split("  ")[-1].strip() == demo.QUICK
    assert f"serves: default, pin {demo.OP}@M≤2" in book("show", book.cache, "--problem", demo.key(2)).stdout
    assert f"serves: {demo.QUICK}, cache: its verdict" in book("show", book.cache, "--problem", demo.key(4)).stdout
    run = next(book.cache.parent.glob("runs/*.jsonl"))
    assert json.loads(book("show", run, "--json").stdout)["serving"] == [], "a run serves nothing"


def test_show_says_where_the_default_serves_for_want_of_anything_else(book: Book) -> None:
    document = json.loads(book.cache.read_text())
    verdict = document["verdicts"][book.demo.key(4)]
    verdict.update(winner="default", speedup=1.0, low=1.0, high=1.0, note="left out: the budget was spent")
    verdict["frontier"] = [{"tactic": "default", "ratio": 1.0, "low": 1.0, "high": 1.0}]
    book.cache.write_text(json.dumps(document))
    assert book.serving()[book.demo.key(4)] == ("default", "default", "left out: the budget was spent")
    assert "1 by the default, nothing else being known" in book("show", book.cache).stdout


# A pin that is not offered.


@pytest.mark.parametrize(
    ("target", "tactic", "says"),
    [
        ("demo::scale", "quick[block=9]", "does not offer this tactic; of quick there are quick[block=1]"),
        ("demo::scale", "quick[block=1.0]", "does not offer this tactic"),
        ("demo::scale", "slow", "runner slow is not offered; there are default, quick, away, some"),
        ("demo::scale", "away", "runner away is not available: no such device"),
        ("demo::scale", "some", "not for any of 3 problems; demo::scale|x.1=3,s=2.0|fp32|M≤1: not for so few rows"),
        ("demo::scale@M≤4", "some", "not for so few rows"),
        ("demo::scale|x.1=3,s=2.0|fp32|M≤4", "some", "not for so few rows"),
        ("demo::scale|x.1=3,s=2.0|fp32|K≤4", "default", "no dimension K"),
        ("demo::scale@K≤4", "default", "no dimension K"),
        ("demo::scale@M=4", "default", "dimension M is rounded up"),
        ("demo::scale@", "default", "names no dimension"),
        ("demo::scale", "quick[", "tactic 'quick['"),
        ("de mo", "default", "a pin is for an op, OP@BUCKET or a problem key"),
        ("nobody", "default", "op 'nobody' is not declared here; name the file that declares it: --with FILE"),
    ],
)
def test_what_is_not_offered_is_not_pinned(
    book: Book, complaint: Complaint, target: str, tactic: str, says: str
) -> None:
    def few(problem: Problem) -> str | None:
        return "not for so few rows" if problem.dims[0].size < 64 else None

    op = book.scale.op
    op.runner("away", available=lambda: "no such device", version="1")(lambda x, s: x * s)
    op.runner("some", supports=few, version="1")(lambda x, s: x * s)
    assert says in complaint(book("pin", target, tactic, code=2))
    assert not book.pins.exists()


def test_a_pin_may_be_offered_for_some_of_its_problems(book: Book, restart: Callable[[], None]) -> None:
    def few(problem: Problem) -> str | None:
        return "not for so few rows" if problem.dims[0].size < 4 else None

    book.scale.op.runner("some", supports=few, version="1")(lambda x, s: x * s)
    told = book("pin", book.demo.OP, "some").stdout
    assert "it serves 1 problem of the cache, not offered for 2" in told
    assert told.count("not for so few rows") == 2
    assert "not offered for 2" in book("pins").stdout
    tactic, by, _ = book.serving()[book.demo.key(1)]
    assert (tactic, by) == (book.demo.QUICK, "cache")
    row = next(line for line in book("show", book.cache).stdout.splitlines() if "not served" in line)
    assert f"not served: pin {book.demo.OP} = some: not for so few rows" in row
    assert serve(book, restart, 1) == "quick"


def test_a_pin_that_is_no_longer_offered_is_an_error_that_names_it(
    book: Book, restart: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    book("pin", book.demo.OP, book.demo.QUICK)
    book.scale = book.demo.op(winner="quick", block=2)
    for arguments in ((), ("--json",)):
        done = book("pins", *arguments, code=1)
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"tunebook: error: {book.pins}: pin {book.demo.OP} = {book.demo.QUICK}: ")
        assert "does not offer this tactic" in line
        assert "`tunebook unpin`" in line
        assert book.demo.QUICK in done.stdout, "the list is there all the same"
    assert serve(book, restart, 4) == "default"
    assert (
        f"{book.pins}: pin {book.demo.OP} = {book.demo.QUICK}: the op does not offer this tactic"
        in capsys.readouterr().err
    )
    book("unpin", book.demo.OP)
    assert book("pins")


def test_a_pin_of_an_op_that_is_declared_elsewhere(book: Book, tmp_path: Path) -> None:
    book("pin", book.demo.OP, "default")
    del OPS[book.demo.OP]
    assert "its op is not declared here (--with FILE)" in book("pins").stdout
    script = tmp_path / "declares.py"
    script.write_text(
        "import tunebook as tb\n@tb.op('demo::scale', buckets={'x': {0: tb.pow2(max=64, name='M')}})\n"
        "def scale(x, s):\n    return x * s\n"
    )
    assert "serves 3 problems of the cache" in book("pins", "--with", script).stdout
    book("pin", book.demo.key(2), "default", "--with", script)
    assert len(read_pins(book.pins).tactics) == 2


# The file.


def test_a_pin_can_be_set_before_anything_was_tuned(demo: Any, cli_inside: Cli, tmp_path: Path) -> None:
    told = cli_inside(tmp_path / "home", "pin", "linear", "default").stdout
    (path,) = (tmp_path / "home").glob("autotune/*/pins.toml")
    assert told == f"{path}: linear = default; it serves 0 problems of the cache\n"
    assert read_pins(path).tactics == {"linear": Tactic.parse("default")}
    assert "1 pin;" in cli_inside(tmp_path / "home", "pins").stdout
    cli_inside(tmp_path / "home", "unpin", "linear")
    assert not path.exists()


def test_a_pin_that_is_not_there_cannot_be_taken_away(book: Book, complaint: Complaint) -> None:
    assert f"there is no pin for {book.demo.OP}; there are none at all" in complaint(
        book("unpin", book.demo.OP, code=2)
    )
    assert "a pin is for an op" in complaint(book("unpin", "de mo", code=2))


def test_a_file_that_is_not_understood_is_named_and_left_alone(book: Book, complaint: Complaint) -> None:
    text = '[pins]\n"demo::scale" = 3\n'
    book.pins.write_text(text)
    assert "left as it is" in complaint(book("pin", book.demo.OP, "default", code=1))
    assert "left as it is" in complaint(book("unpin", book.demo.OP, code=1))
    done = book("pins", code=1)
    assert "miss: " in done.stdout
    assert "mend the file" in done.stderr
    assert book.pins.read_text() == text
