"""`tunebook promote` and `rollback`: a run is adopted because somebody says so, and that can be taken back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunebook as tb
from tunebook.dispatch import OPS
from tunebook.records import DEFAULT, Verdict
from tunebook.store import pins_path, read_cache, read_run, update_pins
from tunebook.store.replaced import replaced_path

Cli = Callable[..., Any]
Complaint = Callable[[Any], str]


class Book:
    """A cache in which the default won everywhere, and a fresh run beside it in which `quick` did."""

    def __init__(self, demo: Any, cli: Cli, folder: Path) -> None:
        self.demo, self._cli, self.folder = demo, cli, folder
        self.cache = folder / "own.json"
        demo.op(winner="default").tune(cache=self.cache)
        self.before = self.cache.read_bytes()
        self.scale = demo.op(winner="quick")
        self.run = Path(self.scale.tune(cache=self.cache, policy="fresh").run)
        assert self.cache.read_bytes() == self.before

    @property
    def verdicts(self) -> dict[str, Verdict]:
        return dict(read_cache(self.cache, None).verdicts)

    @property
    def winners(self) -> dict[str, str]:
        return {key: verdict.winner for key, verdict in self.verdicts.items()}

    def everywhere(self, winner: str) -> dict[str, str]:
        return {self.demo.key(rows): winner for rows in (1, 2, 4)}

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        return self._cli(self.folder / "home", *arguments, code=code)

    def promote(self, *arguments: object, run: Path | None = None, code: int = 0) -> Any:
        return self("promote", run or self.run, "--yes", *arguments, code=code)

    def document(self, *arguments: object, run: Path | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.promote("--json", *arguments, run=run).stdout)
        return found

    def rewritten(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """A copy of the run, each line changed in place; a line that is emptied is left out."""
        lines = [json.loads(line) for line in self.run.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            change(line)
        path = self.run.with_name(f"own.{name}.jsonl")
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines if line), encoding="utf-8")
        return path

    def judged(self, name: str, **verdicts: dict[str, Any]) -> Path:
        """A copy of the run with other fields in its verdicts, by the number of rows: ``m4={"status": "likely"}``."""
        by_key = {self.demo.key(int(rows[1:])): fields for rows, fields in verdicts.items()}

        def change(line: dict[str, Any]) -> None:
            if line["type"] == "verdict":
                line["verdict"].update(by_key.get(line["verdict"]["problem"], {}), run=name)

        return self.rewritten(name, change)


@pytest.fixture
def book(demo: Any, cli_inside: Cli, tmp_path: Path) -> Book:
    return Book(demo, cli_inside, tmp_path)


def test_a_run_is_adopted_and_given_up_again(book: Book, restart: Callable[[], None]) -> None:
    lines = book.promote().stdout.splitlines()
    at = [
        next(i for i, line in enumerate(lines) if line.startswith(text))
        for text in ("A: cache", "What goes in", "promo")
    ]
    assert at == sorted(at), "the diff comes first"
    assert lines[-1] == f"promoted: 3 problems into {book.cache}; `tunebook rollback` takes it back"
    assert book.verdicts == read_run(book.run).verdicts
    restart()
    with tb.autotune(tune_mode=False, cache=book.cache):
        pass
    assert book.scale(4) == "quick"
    told = book("rollback", "--cache", book.cache, "--yes").stdout
    assert "What is restored" in told
    assert told.splitlines()[-1].startswith(f"rolled back: {book.run}, promoted 20")
    assert book.cache.read_bytes() == book.before
    assert not replaced_path(book.cache).exists()
    restart()
    with tb.autotune(tune_mode=False, cache=book.cache):
        pass
    assert book.scale(4) == "default"


def test_a_promotion_replaces_a_better_supported_verdict(book: Book) -> None:
    book.promote()
    lesser = book.judged("lesser", m4={"status": "unresolved", "rounds": 2})
    assert set(book.document(run=lesser)["promoted"]) == set(book.everywhere(""))
    assert book.verdicts == read_run(lesser).verdicts
    assert book.verdicts[book.demo.key(4)].status == "unresolved"


def test_what_is_there_already_is_not_promoted_again(book: Book) -> None:
    book.promote()
    cache, kept = book.cache.read_bytes(), replaced_path(book.cache).read_bytes()
    told = book.promote().stdout
    assert "in the cache already: 3 problems" in told
    assert told.splitlines()[-1] == f"nothing to promote: {book.cache} is left as it is"
    document = book.document()
    assert (document["promoted"], sorted(document["same"]), document["written"]) == ({}, sorted(book.winners), False)
    assert (book.cache.read_bytes(), replaced_path(book.cache).read_bytes()) == (cache, kept)


def test_the_documents(book: Book) -> None:
    document = book.document()
    assert (document["run"], document["cache"], document["written"]) == (str(book.run), str(book.cache), True)
    assert document["promoted"] == {key: {"before": "default", "after": book.demo.QUICK} for key in book.everywhere("")}
    assert document["diff"]["before"]["path"] == str(book.cache)
    back = json.loads(book("rollback", "--cache", book.cache, "--yes", "--json").stdout)
    assert back["restored"] == {key: {"before": book.demo.QUICK, "after": "default"} for key in book.everywhere("")}
    assert (back["run"], back["left"], back["written"]) == (str(book.run), 0, True)
    assert book.cache.read_bytes() == book.before


def test_several_promotions_are_taken_back_one_by_one(book: Book, complaint: Complaint) -> None:
    book.promote()
    slower = book.judged("slower", m1={"speedup": 1.5, "low": 1.4, "high": 1.6})
    book.promote(run=slower)
    for left, speedup in ((1, 1.5), (0, read_run(book.run).verdicts[book.demo.key(1)].speedup)):
        assert book.verdicts[book.demo.key(1)].speedup == speedup
        assert json.loads(book("rollback", "--cache", book.cache, "--yes", "--json").stdout)["left"] == left
    assert book.cache.read_bytes() == book.before
    line = complaint(book("rollback", "--cache", book.cache, "--yes", code=1))
    assert f"{book.cache}: nothing was promoted into it" in line


def test_a_cache_that_is_not_there_yet(book: Book) -> None:
    other = book.folder / "new" / "other.json"
    told = book.promote("--cache", other).stdout
    assert f"{other}: there is no such cache yet" in told
    assert read_cache(other, None).verdicts == read_run(book.run).verdicts
    assert book.cache.read_bytes() == book.before
    book("rollback", "--cache", other, "--yes")
    assert dict(read_cache(other, None).verdicts) == {}


def test_without_a_cache_beside_it_a_run_goes_into_the_one_of_its_environment(book: Book) -> None:
    run = book.folder / "sent.jsonl"
    run.write_bytes(book.run.read_bytes())
    (cache,) = [Path(book.document(run=run)["cache"])]
    assert cache.is_relative_to(book.folder / "home")
    assert json.loads((cache.parent / "environment.json").read_text())["digest"] == cache.parent.name
    assert read_cache(cache, None).verdicts == read_run(book.run).verdicts
    assert json.loads(book("rollback", "--yes", "--json").stdout)["cache"] == str(cache)


def test_a_run_goes_into_the_cache_beside_it_whatever_that_is_called(book: Book, complaint: Complaint) -> None:
    before = book.cache.read_bytes()
    other = book.cache.rename(book.cache.with_name("own.cache"))
    assert book.document()["cache"] == str(other)
    book("rollback", "--cache", other, "--yes")
    assert other.read_bytes() == before
    other.with_name("own.html").write_text("a page")
    line = complaint(book.promote(code=2))
    assert "which of own.cache, own.html is its cache cannot be told; say --cache" in line


def test_latest_is_the_newest_run_beside_the_cache(book: Book) -> None:
    assert json.loads(book("promote", "latest", "--cache", book.cache, "--yes", "--json").stdout)["run"] == str(
        book.run
    )


# What is taken.


def test_only_what_the_diff_shows_to_be_better(book: Book) -> None:
    def worth(speedup: float) -> dict[str, Any]:
        return {"speedup": speedup, "low": speedup * 0.995, "high": speedup * 1.005, "rounds": 40}

    book.promote(run=book.judged("earlier", m1=worth(2.0), m2=worth(2.0), m4=worth(2.0)))
    run = book.judged("later", m1=worth(4.0), m2=worth(2.01), m4=worth(1.5))
    document = book.document("--only-better", run=run)
    assert list(document["promoted"]) == [book.demo.key(1)]
    assert {key: why.split(":")[0] for key, why in document["left"].items()} == {
        book.demo.key(2): "not shown to be better",
        book.demo.key(4): "not shown to be better",
    }
    assert book.verdicts[book.demo.key(1)].run == "later"
    assert "--only-better" in book("rollback", "--cache", book.cache, "--yes").stdout


def test_of_what_the_cache_lacks_only_what_beats_the_default(book: Book) -> None:
    even = {"speedup": 1.0, "low": 0.9, "high": 1.1}
    document = book.document("--only-better", "--cache", book.folder / "x.json", run=book.judged("even", m2=even))
    assert set(document["promoted"]) == {book.demo.key(1), book.demo.key(4)}
    assert "did not measure it" in document["left"][book.demo.key(2)]


def test_only_some_ops(book: Book, complaint: Complaint) -> None:
    line = complaint(book.promote("--op", "linear", code=2))
    assert "--op linear" in line
    assert "it has demo::scale" in line
    assert set(book.document("--op", "demo::scale")["promoted"]) == set(book.everywhere(""))


def test_what_a_budget_left_out_says_nothing(book: Book) -> None:
    even = {"ratio": 1.0, "low": 1.0, "high": 1.0}
    nothing = {
        "winner": "default",
        "speedup": 1.0,
        "low": 1.0,
        "high": 1.0,
        "frontier": [{"tactic": "default", **even}],
    }
    run = book.judged("out", m4={"note": "left out: the budget was spent", **nothing})
    told = book.promote(run=run).stdout
    assert "What stays out" in told
    assert "left out: the budget was spent" in told
    assert book.winners == {**book.everywhere(book.demo.QUICK), book.demo.key(4): "default"}
    assert book.verdicts[book.demo.key(4)].note == ""


@pytest.mark.parametrize(
    ("options", "says"), [({"version": "2"}, "version v:1 ≠ v:2"), ({"block": 2}, "does not offer")]
)
def test_what_the_op_does_not_offer_is_never_put_in(book: Book, options: dict[str, Any], says: str) -> None:
    book.demo.op(winner="quick", **options)
    document = book.document()
    assert document["promoted"] == {}
    assert all(says in why and "winner is not offered" in why for why in document["left"].values()), document["left"]
    assert len(document["left"]) == 3
    assert book.cache.read_bytes() == book.before


def test_members_that_are_not_offered_are_left_out_of_the_verdict(book: Book) -> None:
    ratio = {"ratio": 1.5, "low": 1.4, "high": 1.6}
    frontier = [{"tactic": book.demo.QUICK, "ratio": 1.0, "low": 1.0, "high": 1.0}]
    ghosts = [{"tactic": "ghost[x=1]", **ratio}, {"tactic": "quick[block=7]", **ratio}]
    run = book.judged("ghost", m4={"frontier": frontier + ghosts, "ties": ["quick[block=7]", "default"]})
    book.promote(run=run)
    verdict = book.verdicts[book.demo.key(4)]
    assert [member.tactic for member in verdict.frontier] == [book.demo.QUICK]
    assert verdict.ties == ("default",)


def test_an_op_that_is_not_declared_needs_its_file(book: Book, tmp_path: Path) -> None:
    del OPS[book.demo.OP]
    document = book.document()
    assert all("op demo::scale is not declared here; name the file that declares it: --with FILE" in why
               for why in document["left"].values())  # fmt: skip
    script = tmp_path / "declares.py"
    script.write_text(
        "import tunebook as tb\n@tb.op('demo::scale', buckets={'x': {0: tb.pow2(max=64, name='M')}})\n"
        "def scale(x, s):\n    return x * s\n"
    )
    document = book.document("--with", script)
    assert all("runner quick is not offered" in why for why in document["left"].values())
    assert len(document["left"]) == 3


def test_a_winner_that_the_run_rejected_is_not_put_in(book: Book) -> None:
    rejected = {
        "type": "rejected",
        "tactic": book.demo.QUICK,
        "reason": "correctness",
        "detail": "row 3 is off",
        "ran": True,
    }
    run = book.rewritten("rejected", lambda line: None)
    with run.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"type": "trial", "problem": book.demo.key(4), "trial": rejected}) + "\n")
    document = book.document(run=run)
    assert "the run rejected its winner quick[block=1]: correctness: row 3 is off" in document["left"][book.demo.key(4)]
    assert book.winners == {**book.everywhere(book.demo.QUICK), book.demo.key(4): "default"}


def test_a_run_that_did_not_end_is_said_to_be_one(book: Book) -> None:
    run = book.rewritten("torn", lambda line: line.clear() if line["type"] == "footer" else None)
    with run.open("a", encoding="utf-8") as file:
        file.write('{"type": "bad"}\n{"type": "sam')
    told = book.promote(run=run).stdout
    assert "note: the run did not end by itself" in told
    assert "note: 1 lines of the run cannot be read" in told
    assert book.winners == book.everywhere(book.demo.QUICK)


def test_pins_go_before_what_is_promoted(book: Book, restart: Callable[[], None]) -> None:
    book.promote()
    update_pins(pins_path(book.cache), {book.demo.OP: DEFAULT})
    restart()
    with tb.autotune(tune_mode=False, cache=book.cache):
        pass
    assert book.scale(4) == "default"


# What is refused.


def test_where_nobody_can_be_asked_it_needs_yes(book: Book, complaint: Complaint) -> None:
    for arguments in (("promote", book.run), ("rollback", "--cache", book.cache)):
        assert "say --yes" in complaint(book(*arguments, code=2))
        assert "--json asks nothing" in complaint(book(*arguments, "--json", code=2))
    assert book.cache.read_bytes() == book.before


def elsewhere(field: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        if line["type"] == "header":
            line["environment"]["hard"][field] = value

    return change


def test_another_environment_is_refused_by_field(book: Book, complaint: Complaint) -> None:
    run = book.rewritten("threads", elsewhere("threads", "63"))
    line = complaint(book.promote(run=run, code=1))
    assert "different environments: threads: 63 ≠ 1" in line
    line = complaint(
        book.promote("--cache", book.folder / "none.json", run=book.rewritten("l2", elsewhere("l2", "7")), code=1)
    )
    assert "made on another machine (there ≠ here): l2: 7 ≠ " in line
    assert book.cache.read_bytes() == book.before


def test_a_run_that_is_still_written_is_refused(book: Book, complaint: Complaint) -> None:
    with book.run.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is still writing this run" in complaint(book.promote(code=1))
    assert book.promote()


def test_what_is_no_run_and_what_is_no_cache(book: Book, complaint: Complaint) -> None:
    wrong: list[tuple[tuple[object, ...], int, str]] = [
        (("promote", book.cache, "--yes"), 1, "a cache, and what is promoted is a run"),
        (("promote", book.folder / "no.jsonl", "--yes"), 1, "no.jsonl"),
        (("promote", book.run, "--cache", book.run, "--yes"), 1, "a run, and what is promoted goes into a cache"),
        (("promote", "cache", "--yes"), 2, "name a run"),
        (("promote", book.run, "--model", "m", "--yes"), 2, "--model and --threads choose latest and previous"),
        (("promote", "previous", "--cache", book.folder / "none.json", "--yes"), 1, "there is no run"),
        (("promote", book.run, "--with", book.folder / "no.py", "--yes"), 1, "no.py"),
        (("rollback", "--cache", book.folder / "none.json", "--yes"), 1, "nothing was promoted into it"),
    ]
    for arguments, code, says in wrong:
        assert says in complaint(book(*arguments, code=code))
    assert book.cache.read_bytes() == book.before
    broken = book.folder / "broken.json"
    broken.write_text("{")
    assert "broken.json" in complaint(book.promote("--cache", broken, code=1))
    assert broken.read_text() == "{"


def test_a_file_of_replaced_results_that_is_broken_is_named(book: Book, complaint: Complaint) -> None:
    replaced_path(book.cache).write_text("{")
    for arguments in (("promote", book.run), ("rollback", "--cache", book.cache)):
        assert "own.json.replaced" in complaint(book(*arguments, "--yes", code=1))
    assert book.cache.read_bytes() == book.before


def test_a_rollback_without_its_cache(book: Book, complaint: Complaint) -> None:
    book.promote()
    book.cache.unlink()
    assert "own.json" in complaint(book("rollback", "--cache", book.cache, "--yes", code=1))
    book.cache.write_bytes(book.run.read_bytes())
    assert "this is no cache" in complaint(book("rollback", "--cache", book.cache, "--yes", code=1))


# On a terminal.


@pytest.fixture
def terminal(book: Book, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``terminal(answer, *arguments)``: what a command of this process writes on a terminal on which somebody answers so."""
    from tunebook.cli import main

    def run(answer: str, *arguments: object) -> str:
        ours, theirs = pty.openpty()
        text: list[bytes] = []

        def read() -> None:
            while not (text and b"\0" in text[-1]):
                text.append(os.read(ours, 4096))

        reader = threading.Thread(target=read)
        reader.start()
        os.write(ours, answer.encode())
        with (
            open(theirs, closefd=False) as keys,
            open(theirs, "w", closefd=False) as screen,
            monkeypatch.context() as patch,
        ):
            patch.setenv("TUNEBOOK_CACHE_DIR", str(book.folder / "home"))
            for name, stream in (("stdin", keys), ("stdout", screen), ("stderr", screen)):
                patch.setattr(sys, name, stream)
            patch.setattr(sys, "argv", ["tunebook", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
            screen.flush()
        os.write(theirs, b"\0")
        reader.join(60)
        os.close(theirs)
        os.close(ours)
        assert not ended.value.code, b"".join(text).decode()
        return b"".join(text).decode()

    return run


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04", "perhaps\n"])
def test_anything_but_a_yes_changes_nothing(book: Book, terminal: Callable[..., str], answer: str) -> None:
    told = terminal(answer, "promote", book.run)
    assert "What goes in" in told
    assert f"put 3 problems into {book.cache}? [y/N]" in told
    assert "nothing was changed" in told
    assert book.cache.read_bytes() == book.before
    assert not replaced_path(book.cache).exists()


def test_a_yes_does_it(book: Book, terminal: Callable[..., str]) -> None:
    assert "promoted: 3 problems" in terminal("y\n", "promote", book.run)
    assert book.winners == book.everywhere(book.demo.QUICK)
    assert "nothing was changed" in terminal("n\n", "rollback", "--cache", book.cache)
    assert book.winners == book.everywhere(book.demo.QUICK)
    assert "rolled back" in terminal("yes\n", "rollback", "--cache", book.cache)
    assert book.cache.read_bytes() == book.before
