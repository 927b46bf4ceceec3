"""A kernel of one's own in the race: `linear` in C, compiled when this file is imported.

    tunebook tune tiny-moe --with examples/my_linear.py

An edit of my_linear.c is noticed by itself: the next tuning races this runner again, and the others not.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

import tunebook as tb
from tunebook.envs import envs

SOURCE = Path(__file__).with_name("my_linear.c")
#: Tried in this order: not every compiler has OpenMP, or knows the machine that it runs on.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())


def find_compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiler_available() -> str | None:
    """Why this runner cannot be offered here, or None: what `available=` asks for."""
    return None if find_compiler() else "no C compiler (cc) found; apt install gcc"


def build(source: Path = SOURCE, directory: Path | None = None) -> Path:
    """The shared object of `source` in `directory` (by default in tunebook's cache), compiled unless it is there.

    Its name is a digest of the source and of all that the compiler knows of the machine, itself and its flags: a cache
    that several machines share serves each its own. Raises RuntimeError with the compiler's first complaint.
    """
    directory = directory or envs.TUNEBOOK_CACHE_DIR.get() / "examples"
    directory.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError(compiler_available())
    complaint = ""
    for flags in FLAGS:
        command = [compiler, "-O3", *flags]
        facts = subprocess.run([*command, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, check=False)
        if facts.returncode:
            complaint = _first_error(facts.stderr)
            continue
        digest = hashlib.sha256(b"\0".join([source.read_bytes(), facts.stdout, *map(os.fsencode, command)])).hexdigest()
        target = directory / f"{source.stem}-{digest[:16]}.so"
        if target.is_file():
            return target
        # Compiled in a place of its own and moved when whole: another process never loads half a library.
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            output = Path(scratch, target.name)
            done = subprocess.run(
                [*command, "-shared", "-fPIC", "-o", output, source], capture_output=True, check=False
            )
            if done.returncode == 0:
                output.replace(target)
                return target
            complaint = _first_error(done.stderr)
    raise RuntimeError(f"{compiler} cannot compile {source.name}: {complaint}")


def _first_error(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "it says nothing")


def load(path: Path) -> ctypes.CDLL:
    """The library, its functions typed: pointers to x, weight, bias (or none) and y; m, n, k; block, threads."""
    library = ctypes.CDLL(str(path))
    for function in (library.my_linear_f32, library.my_linear_bf16):
        function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 4 + [ctypes.c_int]
        function.restype = None
    return library


def multiply(
    library: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, block: int, threads: int
) -> torch.Tensor:
    """x [..., k] times weight [n, k] transposed, plus bias [n]: [..., n]. On the CPU, all fp32 or all bf16."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if x.dtype not in (torch.float32, torch.bfloat16) or any(tensor.dtype != x.dtype for tensor in tensors):
        raise TypeError(f"my_linear takes fp32 or bf16 alone, not {', '.join(str(tensor.dtype) for tensor in tensors)}")
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise TypeError("my_linear takes tensors on the CPU")
    (n, k), m = weight.shape, math.prod(x.shape[:-1])
    if x.shape[-1] != k or (bias is not None and bias.shape != (n,)):
        raise ValueError(f"my_linear: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit each other")
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(*x.shape[:-1], n)
    function = library.my_linear_bf16 if x.dtype == torch.bfloat16 else library.my_linear_f32
    pointer = None if bias is None else bias.data_ptr()
    function(x.data_ptr(), weight.data_ptr(), pointer, y.data_ptr(), m, n, k, block, threads)
    return y


#: A module global, so that the library is part of the runner's version. Without a compiler the runner is not offered.
LIBRARY = load(build()) if find_compiler() else None


@tb.kernels.linear.runner(
    "my_linear",
    space={"block": (8, 32, 128), "threads": (1, 2)},
    sources=("my_linear.c",),
    available=compiler_available,
)
def my_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, block: int, threads: int
) -> torch.Tensor:
    assert LIBRARY is not None
    return multiply(LIBRARY, x, weight, bias, block, threads)
