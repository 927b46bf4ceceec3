"""Hooks of mkdocs: what pages link to outside of docs/, such as examples, becomes a page of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+)(#[\w-]+)?\)")


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Add a page for each file of the repository that a page links to."""
    root = Path(config.config_file_path).parent
    wanted = set()
    for file in files.documentation_pages():
        wanted |= {path for path, _ in _OUTSIDE.findall(file.content_string)}
    for path in sorted(wanted):
        source = root / path
        if source.is_file():  # a link to what is not there stays as it is, and fails
            text = source.read_text(encoding="utf-8")
            page = text if source.suffix == ".md" else f"# {path}\n\n~~~~{source.suffix.lstrip('.')}\n{text}~~~~\n"
            files.append(File.generated(config, _page_of(path), content=page))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Lead the links there."""

    def lead(found: re.Match[str]) -> str:
        target = _page_of(found[1])
        known = files.get_file_from_path(target) is not None
        return f"]({target}{found[2] or ''})" if known else found[0]

    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(lead, markdown)


def _page_of(path: str) -> str:
    return path if path.endswith(".md") else f"{path}.md"
