"""What the tests of vLLM's warm-up share: vLLM's own modules for it, a runner for them, and stubs for what is heavy.

Out of the published wheel, as they are: `kernel_warmup` with ``flashinfer_autotune``, `flashinfer_autotune_cache`,
``vllm.utils.flashinfer``, ``vllm.envs``, ``vllm.plugins``, the version. Everything else of vLLM that these import is a stub
that does nothing: other warm-ups, kernels, configurations, platforms, the logger, and `parallel_state`, whose groups are of
this process alone unless a test gives others. The model runner is a stub too: its dummy run is what a test gives. FlashInfer
is the real one, on the CPU; it would be refused there for want of a CUDA compiler, and ``VLLM_HAS_FLASHINFER_CUBIN`` says
that none is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.integrations.engine_wheels import VLLM

#: Packages of modules that are there: their names are those.
PARENTS = {"vllm", "vllm.utils", "vllm.model_executor", "vllm.model_executor.warmup"}


def installed() -> None:
    """Leave the test out where vLLM's modules are not here."""
    if not VLLM.is_there:
        pytest.skip("vLLM's modules are not here; `make test` gets them")


def failed(caplog: pytest.LogCaptureFixture) -> str:
    """The one line that says why tunebook does not tune."""
    (record,) = [r for r in caplog.records if r.name == "tunebook.vllm" and r.levelno >= logging.ERROR]
    message = record.getMessage()
    assert message.startswith("FlashInfer tunes without tunebook: ")
    assert "\n" not in message
    assert record.exc_info is None
    return message


class Anything:
    """Takes any arguments, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class Stub(Loader):
    """A package of which every name is a class of its own, that does nothing; or what `names` says."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self.names)
        if module.__name__ in PARENTS:
            return

        def anything(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            vars(module)[name] = type(name, (Anything,), {})
            return vars(module)[name]

        vars(module)["__getattr__"] = anything


class Wheel(MetaPathFinder):
    """``vllm.*``: out of the wheel what was taken out of it, else a stub."""

    def __init__(self, names: dict[str, dict[str, Any]]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "vllm":
            return None
        place = VLLM.place.joinpath(*fullname.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return importlib.util.spec_from_file_location(fullname, file)
        return ModuleSpec(fullname, Stub(self.names.get(fullname, {})), is_package=True)


class Rank:
    """One of vLLM's groups, as far as the warm-up looks at it: a `GroupCoordinator`."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank_in_group, self.world_size, self.cpu_group = rank, size, group

    def barrier(self) -> None:
        if self.cpu_group is not None:
            torch.distributed.barrier(self.cpu_group)


class Runner:
    """A model runner: `dummy_run(num_tokens)` makes the calls that a model would make."""

    def __init__(self, dummy_run: Callable[[int], object], max_tokens: int = 16, config_hash: str = "a model") -> None:
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(mamba_block_size=None, kv_cache_layout=None),
            attention_config=SimpleNamespace(hisparse_config=None),
            parallel_config=SimpleNamespace(data_parallel_rank=0),
            compute_hash=lambda include_version: config_hash,
        )
        self.scheduler_config = SimpleNamespace(max_num_batched_tokens=max_tokens)
        self._dummy = dummy_run
        self.runs: list[dict[str, Any]] = []

    def get_model(self) -> torch.nn.Module:
        return torch.nn.Module()

    def _dummy_run(self, **options: Any) -> None:
        self.runs.append(options)
        self._dummy(options["num_tokens"])


class Logger(logging.Logger):
    """vLLM's loggers say some things once; here, each time."""

    info_once = logging.Logger.info
    debug_once = logging.Logger.debug
    warning_once = logging.Logger.warning


def init_logger(name: str) -> Logger:
    logger = Logger(name)
    logger.parent = logging.getLogger()
    return logger


class Engine:
    """vLLM in this process."""

    def __init__(self, cache: Path, world: Rank) -> None:
        self.cache = cache
        self.world = world

    def warm_up(self, runner: Runner, **options: Any) -> None:
        """As ``kernel_warmup(worker)`` does: it looks the function up in its module."""
        module = importlib.import_module("vllm.model_executor.warmup.kernel_warmup")
        module.flashinfer_autotune(runner, **options)

    @property
    def warmup(self) -> Any:
        return importlib.import_module("vllm.model_executor.warmup.kernel_warmup")

    @property
    def wrappers(self) -> Any:
        return importlib.import_module("vllm.utils.flashinfer")

    def directory(self, root: Path | None = None) -> Path:
        """The one directory of the one model."""
        (found,) = [path for path in (root or self.cache).iterdir() if path.is_dir()]
        return found


@contextlib.contextmanager
def vllm_engine(
    cache: Path, world: Rank | None = None, version: str = VLLM.version, **names: dict[str, Any]
) -> Iterator[Engine]:
    """vLLM importable in the block, as if for the first time, with its FlashInfer cache in `cache`.

    `names` are further names of stubs: ``vllm_config={"replace": …}``.
    """
    alone = world or Rank()
    stubs: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.logger": {"init_logger": init_logger},
        "vllm.distributed.parallel_state": {
            "get_world_group": lambda: alone,
            "get_pp_group": Rank,
            "get_tp_group": lambda: alone,
        },
        **{name.replace("_", "."): given for name, given in names.items()},
    }
    finders = list(sys.meta_path)
    sys.meta_path.insert(0, Wheel(stubs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", str(cache))
        patch.setenv("VLLM_HAS_FLASHINFER_CUBIN", "1")
        patch.setenv("TUNEBOOK_FLASHINFER", os.environ.get("TUNEBOOK_FLASHINFER", "0"))  # `enable` sets it
        try:
            yield Engine(cache, alone)
        finally:
            sys.meta_path[:] = finders
            for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
                del sys.modules[name]
