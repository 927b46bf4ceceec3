"""The site that mkdocs makes of docs/: every link leads somewhere, nothing is loaded from elsewhere, and a broken page fails."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from tunebook.records import CacheDocument, CoverageDocument, MixDocument, RunLine
from tunebook.store.replaced import ReplacedDocument

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.pages import DOCS  # noqa: E402 - found from the root


class Parsed(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") != "canonical" and "href" in given:
            self.loads.append(given["href"])


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As `make check` does: with --quiet mkdocs would not count warnings either."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    done = build(ROOT, site)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Parsed]:
    return {page: Parsed(page) for page in sorted(site.rglob("*.html"))}


def test_every_page_is_there_and_in_the_menu(site: Path, pages: dict[Path, Parsed]) -> None:
    menu = {link.partition("#")[0] for link in pages[site / "index.html"].links}
    assert menu >= {f"{page.stem}.html" for page in DOCS}


def test_every_link_leads_to_a_file_and_an_anchor_from_the_disk(site: Path, pages: dict[Path, Parsed]) -> None:
    for page, parsed in pages.items():
        if page.name == "404.html":  # is for servers: its links begin at their root
            continue
        for link in parsed.links + parsed.loads:
            url = urlsplit(link)
            if url.scheme or link.startswith("//"):
                assert url.scheme == "https", f"{page.name}: {link}"
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            assert target.is_relative_to(site.resolve()), f"{page.name}: {link}"
            assert target.is_file(), f"{page.name}: {link}"
            if target.suffix == ".html":
                anchor = unquote(url.fragment)
                assert anchor in pages[site / target.relative_to(site.resolve())].anchors, f"{page.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Parsed]) -> None:
    loaded = [(page.name, load) for page, parsed in pages.items() for load in parsed.loads]
    assert loaded
    assert [pair for pair in loaded if "//" in pair[1]] == []
    for style in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", style.read_text(encoding="utf-8"))
        assert found == [], style.name


def test_files_that_pages_link_to_are_pages_too(site: Path, pages: dict[Path, Parsed]) -> None:
    assert "examples/own_op.py.html" in pages[site / "own-op.html"].links
    text = (site / "examples" / "own_op.py.html").read_text(encoding="utf-8")
    assert "torch.embedding" not in text
    assert "F.embedding_bag(ids, table" in text


def test_what_leads_nowhere_fails(tmp_path: Path) -> None:
    for name in ("docs", "scripts", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "benchmarks").mkdir()
    for file in (ROOT / "benchmarks").iterdir():
        if file.suffix in (".md", ".py"):
            shutil.copy(file, tmp_path / "benchmarks")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs" / "lonely.md").write_text("# In no menu\n")
    with (tmp_path / "docs" / "concepts.md").open("a") as page:
        page.write("[one](nowhere.md) [two](files.md#no-such-heading) [three](../examples/no_such_file.py)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for word in ("lonely.md", "nowhere.md", "no-such-heading", "no_such_file.py"):
        assert word in done.stderr, done.stderr


# Schemas


SCHEMAS: dict[str, Any] = {
    "cache": CacheDocument,
    "run-line": RunLine,
    "recorded-calls": MixDocument,
    "coverage": CoverageDocument,
    "replaced": ReplacedDocument,
}


def test_every_schema_is_listed() -> None:
    there = {file.stem for file in (ROOT / "docs" / "schemas").iterdir()}
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert there == SCHEMAS.keys() == set(re.findall(r"\(schemas/([\w-]+)\.json\)", text))


@pytest.mark.parametrize(
    ("name", "record"),
    SCHEMAS.items(),
    ids=SCHEMAS,
)
def test_a_schema_is_of_its_record(name: str, record: Any) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    made = msgspec.json.schema(record)
    assert {key: value for key, value in schema.items() if key in made} == json.loads(json.dumps(made))


def test_the_schema_of_a_run_tells_its_lines_apart() -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / "run-line.json").read_text(encoding="utf-8"))
    kinds = set(schema["discriminator"]["mapping"])
    assert kinds == {str(line.__struct_config__.tag) for line in get_args(RunLine)}
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert all(re.search(rf"^\| `{kind}`", text, re.MULTILINE) for kind in kinds)
