"""Write the documentation pages that are generated from code, or with --check say which of them is stale (exit 1)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tunebook import envs

ROOT = Path(__file__).resolve().parent.parent
PAGES: dict[str, Callable[[], str]] = {"docs/environment.md": envs.markdown}


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
