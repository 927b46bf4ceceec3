"""Write the documentation pages that are generated from code, or with --check say which of them is stale (exit 1)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunebook import _envpage
from tunebook.interop import FORMATS, Merges
from tunebook.records import CacheDocument, CoverageDocument, MixDocument, RunLine
from tunebook.store.replaced import ReplacedDocument

ROOT = Path(__file__).resolve().parent.parent

_NOTE = "Made from the types that read and write these files. A reader ignores fields that are not listed."


def schema(what: str, record: Any) -> str:
    """The JSON schema of a record, or of a union of records, as a document."""
    made = msgspec.json.schema(record)
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": _NOTE,
        "title": what,
        **made,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def formats() -> str:
    """docs/formats.md with the table of formats as they are."""
    columns = ("`--to`", "what it is", "read and written", "what is lost", "merge")
    rows: list[tuple[str, ...]] = [columns, ("---",) * len(columns)]
    for one in FORMATS:
        told = [
            one.title,
            one.fidelity,
            "; ".join(map(str, one.lost)) or "nothing",
            "yes" if isinstance(one, Merges) else "no",
        ]
        rows.append((f"`{one.name}`", *(text.replace("|", "\\|").replace("*", "\\*") for text in told)))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    page, begin, end = ROOT / "docs" / "formats.md", "<!-- formats -->\n", "<!-- /formats -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin) if page.exists() else ("", "", "")
    return f"{before}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}"


PAGES: dict[str, Callable[[], str]] = {
    "docs/environment.md": _envpage.markdown,
    "docs/schemas/cache.json": partial(schema, "A cache of tunebook: winners.json", CacheDocument),
    "docs/schemas/run-line.json": partial(schema, "A line of a run file of tunebook: runs/winners.….jsonl", RunLine),
    "docs/schemas/recorded-calls.json": partial(schema, "Calls that tunebook generate has recorded", MixDocument),
    "docs/schemas/coverage.json": partial(
        schema, "Calls that were counted while serving: coverage.json", CoverageDocument
    ),
    "docs/schemas/replaced.json": partial(schema, "What promotions replaced: winners.json.replaced", ReplacedDocument),
    "docs/formats.md": formats,
}


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for name, generate in PAGES.items():
        page, text = root / name, generate()
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale.append(name)
        else:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {name}")
    if stale:
        print(f"stale: {', '.join(stale)}; run 'make docs' and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
