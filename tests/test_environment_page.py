"""The generated reference page is fresh and complete, and only tunebook.envs reads the process environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunebook._envpage import markdown
from tunebook.envs import Envs

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tunebook"


def python(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environ},
    )


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "environment.md").read_text(encoding="utf-8") == markdown()
    result = python(str(ROOT / "scripts" / "generate_docs.py"), "--check", TUNEBOOK_THREADS="7")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_page_says_everything_and_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    page = markdown()
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", "/nowhere")
    assert markdown() == page
    for field in Envs.fields():
        assert f"### {field.name}\n" in page
        assert field.help in page
        assert field.accepts in page
    assert "`SGLANG_FLASHINFER_AUTOTUNE_CACHE` (owned by SGLang)" in page
    assert "TUNEBOOK_AUTOTUNE_CACHE=0 tunebook tune" in page
    assert "runs/<cache stem>.<YYYYmmdd_HHMMSS>[-n].jsonl" in page


def test_a_stale_page_is_said_in_one_line_and_written_again(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "generate_docs.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "generate_docs.py").read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / "docs" / "environment.md"
    stale = python(str(script), "--check")
    assert stale.returncode == 1
    (line,) = stale.stderr.splitlines()
    assert line.startswith("stale: docs/environment.md, docs/schemas/")
    assert line.endswith("; run 'make docs' and commit the result")
    assert not page.exists()
    assert python(str(script)).returncode == 0
    assert page.read_text(encoding="utf-8") == markdown()
    assert python(str(script), "--check").returncode == 0


def readers(tree: ast.AST) -> list[int]:
    """The lines that reach the process environment, however it is imported."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name):
            if node.value.id in {"os", "posix", "nt"}:
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "posix", "nt"}:
            lines += [node.lineno for alias in node.names if alias.name in names | {"*"}]
        elif isinstance(node, ast.Import):
            lines += [node.lineno for alias in node.names if alias.name == "os" and alias.asname not in {None, "os"}]
    return lines


def test_only_envs_reads_the_process_environment() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = readers(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        if lines:
            found[path.relative_to(PACKAGE).as_posix()] = lines
    assert list(found) == ["envs.py"]


@pytest.mark.parametrize(
    "code",
    ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ as e", "import os as o"],
)
def test_the_search_for_readers_finds_them(code: str) -> None:
    assert readers(ast.parse(code))


def test_the_registry_imports_nothing_heavy() -> None:
    result = python("-c", "import sys; import tunebook.envs; print({'torch', 'transformers'} & set(sys.modules))")
    assert (result.returncode, result.stdout) == (0, "set()\n")
