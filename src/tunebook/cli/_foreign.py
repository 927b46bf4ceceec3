"""What the commands say of books of other tuners: one of them, two compared, several in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook._figures import duration
from tunebook.cli._output import print_json, say
from tunebook.cli._tables import table
from tunebook.cli._text import clean, markdown

if TYPE_CHECKING:
    from tunebook.interop import Entry, ForeignBook, ForeignDiff

#: So many keys that only one side has are named.
NAMED = 20


def books(paths: Sequence[Path], command: str) -> list[ForeignBook] | None:
    """The books at `paths`, or None where none of them is another tuner's.

    Raises ``UsageError`` where some are, and ``StoreError`` for a malformed one.
    """
    from tunebook.errors import UsageError
    from tunebook.interop import open_any
    from tunebook.store import read_any

    found = [open_any(path) for path in paths]
    known = [book for book in found if book is not None]
    if not known:
        return None
    if len(known) < len(found):
        own = next(path for path, book in zip(paths, found, strict=True) if book is None)
        read_any(own)  # one that is no book at all is named for that
        raise UsageError(
            f"{known[0].path} is of {known[0].format} and {own} is not; `tunebook {command}` takes two alike"
        )
    return known


def show(book: ForeignBook, problem: str | None, as_json: bool) -> None:
    """Print a book, or of it the entries whose key contains `problem`. Raises ``UsageError`` where none does."""
    from tunebook.errors import UsageError
    from tunebook.interop import by_name

    entries = [entry for key, entry in sorted(book.entries.items()) if problem is None or problem in key]
    if problem is not None and not entries:
        raise UsageError(f"{book.path}: none of its {len(book.entries)} keys contains {problem!r}")
    title = by_name(book.format).title
    if as_json:
        print_json(
            {
                "path": str(book.path),
                "kind": book.format,
                "title": title,
                "facts": dict(book.facts),
                "entries": {entry.key: plain(entry) for entry in entries},
                "misses": [str(miss) for miss in book.misses],
            }
        )
        return
    if problem is not None:
        for entry in entries:
            _in_full(entry)
        return
    say(f"{clean(book.path)}: {title}, {len(entries)} entries")
    table("Environment", ("field", "value"), [(clean(name), clean(value)) for name, value in book.facts.items()])
    table("Entries", ENTRY_COLUMNS, [entry_row(entry) for entry in entries])
    for miss in book.misses:
        say(f"miss: {miss}")


#: Of the table of entries; those that begin with ``>`` are figures.
ENTRY_COLUMNS = ("op", "problem", "choice", ">a call", ">trials")


def entry_row(entry: Entry) -> tuple[str, ...]:
    """One entry as the table has it."""
    return (
        clean(entry.op),
        clean(entry.problem or entry.key),
        clean(entry.choice) or "-",
        took(entry.seconds),
        str(len(entry.trials) or "-"),
    )


def _in_full(entry: Entry) -> None:
    say(f"\n{clean(entry.key)}")
    rows = [("op", entry.op), ("problem", entry.problem), ("choice", entry.choice), ("a call", took(entry.seconds))]
    table("Entry", ("field", "value"), [(name, clean(value)) for name, value in rows if value])
    trials = sorted(entry.trials, key=lambda trial: (trial.seconds is None, trial.seconds or 0.0, trial.tactic))
    table(
        "Trials", ("tactic", ">a call", "reason"), [(clean(t.tactic), took(t.seconds), clean(t.reason)) for t in trials]
    )


def took(seconds: float | None) -> str:
    """A time with its unit; a dash where the format has none."""
    return "-" if seconds is None else duration(seconds)


def diff(found: ForeignDiff, as_markdown: bool, as_json: bool) -> bool:
    """Print a comparison, and say whether anything would be served differently."""
    if as_json:
        print_json({**plain(found), "different": found.different})
    elif as_markdown:
        _say_markdown(found)
    else:
        for line in _sides(found):
            say(line)
        table("Environment and versions that differ", ("field", "A", "B"), _fact_rows(found, clean))
        table("Winners that flipped", FLIP_COLUMNS, flip_rows(found, clean))
        for line in _only(found, clean):
            say(line)
        say()
        say(answer(found))
    return found.different


def answer(found: ForeignDiff) -> str:
    """One sentence."""
    if not found.different:
        return f"no difference: {found.same} problems with the same winners"
    both = found.same + len(found.flipped)
    parts = [f"{len(found.flipped)} of {both} winners flipped"]
    parts += [f"{len(keys)} problems only in {side}" for side, keys in _lists(found) if keys]
    return f"different: {', '.join(parts)}; whether it matters cannot be told from files without samples"


#: Of the table of flips.
FLIP_COLUMNS = ("op", "problem", "A", "B", ">A takes", ">B takes", ">A over B")


def flip_rows(found: ForeignDiff, shown: Callable[[object], str]) -> list[tuple[str, ...]]:
    """The flips as the table has them; `shown` makes text of files fit to be printed."""
    return [
        (
            shown(flip.op),
            shown(flip.problem or flip.key),
            shown(flip.before) or "-",
            shown(flip.after) or "-",
            took(flip.before_s),
            took(flip.after_s),
            "-" if flip.ratio is None else f"{flip.ratio:.2f}",
        )
        for flip in found.flipped
    ]


def _fact_rows(found: ForeignDiff, shown: Callable[[object], str]) -> list[tuple[str, ...]]:
    return [(shown(fact.name), shown(fact.before) or "-", shown(fact.after) or "-") for fact in found.facts]


def _sides(found: ForeignDiff) -> list[str]:
    lines = []
    for name, side in (("A", found.before), ("B", found.after)):
        unreadable = f", {side.unreadable} cannot be read" if side.unreadable else ""
        lines.append(f"{name}: {side.format} {clean(side.path)}, {side.entries} entries{unreadable}")
    return lines


def _lists(found: ForeignDiff) -> tuple[tuple[str, Sequence[str]], tuple[str, Sequence[str]]]:
    return ("A", found.only_before), ("B", found.only_after)


def _only(found: ForeignDiff, shown: Callable[[object], str]) -> list[str]:
    lines = []
    for side, keys in _lists(found):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            lines.append(f"only in {side}: {len(keys)} problems: {', '.join(map(shown, keys[:NAMED]))}{more}")
    return lines


def _say_markdown(found: ForeignDiff) -> None:
    """GitHub's Markdown, the answer first."""
    parts = [f"**{answer(found)}**"]
    for name, side in (("A", found.before), ("B", found.after)):
        parts.append(f"{name}: {markdown(side.path)} ({side.format}, {side.entries} entries)")
    for title, columns, rows in (
        ("Environment and versions that differ", ("field", "A", "B"), _fact_rows(found, markdown)),
        ("Winners that flipped", FLIP_COLUMNS, flip_rows(found, markdown)),
    ):
        if rows:
            marks = ["---:" if column.startswith(">") else "---" for column in columns]
            names = [column.lstrip(">") for column in columns]
            lines = "\n".join("| " + " | ".join(row) + " |" for row in (names, marks, *rows))
            parts.append(f"#### {title}\n\n{lines}")
    say("\n\n".join([*parts, *_only(found, markdown)]))


def history(paths: Sequence[Path], as_json: bool) -> None:
    """Print the books at these paths and in these directories, newest first."""
    from tunebook.interop import history as entries

    found = entries(paths)
    if as_json:
        print_json({"books": [plain(entry) for entry in found]})
        return
    say(f"{len(found)} book{'' if len(found) == 1 else 's'}")
    table(
        "Books, newest first; flipped, new and gone count against the one before of the same rank",
        ("book", "when", "of", "format", ">entries", ">flipped", ">new", ">gone"),
        [
            (
                clean(Path(entry.path).name),
                entry.when,
                clean(entry.name),
                entry.format,
                f"{entry.entries}{f' ({entry.unreadable} cannot be read)' if entry.unreadable else ''}",
                *("-" if count is None else str(count) for count in (entry.flipped, entry.added, entry.removed)),
            )
            for entry in found
        ],
    )


def merge(of: Sequence[ForeignBook], output: Path, as_json: bool) -> None:
    """Write the entries of both to `output`; where both have a problem, the first one's."""
    from tunebook import interop
    from tunebook.errors import UsageError

    if any(output.exists() and output.resolve() == book.path.resolve() for book in of):
        raise UsageError(f"-o {output} is what is read, and would be lost; name another place")
    found = interop.merge(of)
    interop.write(interop.by_name(found.book.format), found.book, output)
    entries = len(found.book.entries)
    (added,) = found.added
    if as_json:
        print_json(
            {
                "path": str(output),
                "format": found.book.format,
                "of": [str(book.path) for book in of],
                "entries": entries,
                "from_a": entries - added,
                "from_b": added,
                "conflicts": [plain(flip) for flip in found.conflicts],
            }
        )
        return
    rows = [(clean(flip.problem or flip.key), clean(flip.before), clean(flip.after)) for flip in found.conflicts]
    table("In both, and not the same: A's is kept", ("problem", "A", "B"), rows)
    say(f"{clean(output)}: {entries} entries: {entries - added} from A, {added} more from B")


def plain(record: Any) -> Any:
    """A record as JSON has it, with the fields that hold their default too."""
    if hasattr(record, "__struct_fields__"):
        return {name: plain(getattr(record, name)) for name in record.__struct_fields__}
    return [plain(one) for one in record] if isinstance(record, tuple) else record
