"""A cache that is to be shipped, the place that it is shipped to, and the commands that do it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.devices import device_of
from tunebook.records import Environment
from tunebook.store.bundles import encode_bundle, open_bundle
from tunebook.store.cache import MAX_CACHE_BYTES

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every name below a folder with inode, time and content: what changes with anything that is written there."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


class Dock:
    """The cache of the op `demo::scale`, tuned; a second home; and the commands in either."""

    def __init__(self, demo: Any, cli_inside: Cli, folder: Path) -> None:
        self.demo, self._cli = demo, cli_inside
        self.home, self.other = Path(os.environ["TUNEBOOK_CACHE_DIR"]), folder / "other"
        self.bundle = folder / "b.tunebook"
        self.environment: Environment = device_of("cpu").environment()
        demo.op().tune()
        (self.run,) = demo.runs()

    @property
    def there(self) -> Path:
        """The cache of the second home."""
        return self.other / "autotune" / self.environment.digest / "winners.json"

    def export(self, *arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._cli(self.home, "export", "-o", self.bundle, *arguments, code=code, **variables)

    def take(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self._cli(self.other, "import", self.bundle, *arguments, code=code)

    def taken(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.take("--yes", "--json", *arguments, code=code).stdout)
        return found

    def change(self, edit: Callable[[dict[str, Any]], object], runs: dict[str, bytes] | None = None) -> None:
        """The bundle with another cache in it, and perhaps other runs."""
        with open_bundle(self.bundle) as bundle:
            document = json.loads(bundle.cache(MAX_CACHE_BYTES))
            kept = {name: bundle.run(name) for name in bundle.runs}
        edit(document)
        self.bundle.write_bytes(encode_bundle(json.dumps(document).encode(), kept if runs is None else runs))


@pytest.fixture
def dock(demo: Any, cli_inside: Cli, tmp_path: Path) -> Dock:
    return Dock(demo, cli_inside, tmp_path)


@pytest.fixture
def complaint() -> Callable[[subprocess.CompletedProcess[str]], str]:
    """``complaint(done)``: the one line of an error, which must be all there is."""

    def read(done: subprocess.CompletedProcess[str]) -> str:
        (line,) = done.stderr.splitlines()
        assert line.startswith("tunebook: error: ")
        assert done.stdout == ""
        return line

    return read


@pytest.fixture
def tree_of() -> Callable[[Path], dict[str, tuple[int, int, bytes]]]:
    return tree
