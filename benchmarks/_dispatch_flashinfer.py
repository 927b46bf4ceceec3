"""FlashInfer's own AutoTuner on CPU tensors: the peer of dispatch.py. It is imported only where it is installed."""

from __future__ import annotations

import functools
import importlib
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

#: The version that figures are compared with.
VERSION = "0.7.2"
HOW_TO_INSTALL = """\
FlashInfer is not installed, so nothing is compared with it. To have it beside tunebook, in an environment of its own:
    python -m pip install --no-deps flashinfer-python==0.7.2.post1
    python -m pip install apache-tvm-ffi orjson packaging requests nvidia-ml-py tqdm"""
OP = "bench::scale"


@dataclass(frozen=True)
class Peer:
    """An `AutoTuner.choose_one` whose entries are cached, and the arguments of a call of it: op, runners, config, inputs."""

    choose: Any
    args: tuple[Any, ...]


def missing() -> str | None:
    """Why FlashInfer cannot be used here, with the commands that install it; None where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("flashinfer.autotuner")
    except ImportError as error:
        return f"{HOW_TO_INSTALL}\n({error})"
    return None


def version() -> str:
    from importlib.metadata import version as version_of

    return version_of("flashinfer-python")


def cached(tensors: Sequence[Tensor], called: Tensor) -> Peer:
    """A tuner of its own that has tuned one op for the rows of every tensor, and a call of it for one of them.

    Stock tuning times CUDA kernels. Here a wall clock does, and the question whether a stream is being captured is answered
    with no; look-up, which is what is measured, is FlashInfer's own.
    """
    module = importlib.import_module("flashinfer.autotuner")

    class Scale(module.TunableRunner):  # type: ignore[misc,name-defined]  # its class is known where it is installed only
        def get_valid_tactics(self, inputs: Any, profile: Any) -> list[int]:
            return [0]

        def forward(self, inputs: Any, tactic: int = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
            return inputs[0]

    def by_wall_clock(self: Any, runner: Any, inputs: Any, tactic: Any, *args: Any, **kwargs: Any) -> float:
        start = time.perf_counter()
        runner(inputs, tactic=tactic)
        return time.perf_counter() - start

    buckets = tuple(x.shape[0] for x in tensors)  # given by a function: a tuple would be hashed at every look-up
    config = module.TuningConfig(
        dynamic_tensor_specs=(module.DynamicTensorSpec((0,), (0,), lambda rows: buckets, lambda rows: rows),)
    )
    tuner = module.AutoTuner()
    runners = [Scale()]
    importlib.import_module("flashinfer.autotuner.autotuner").logger.setLevel(logging.WARNING)
    progress = importlib.import_module("tqdm")
    with (
        mock.patch.object(progress, "tqdm", functools.partial(progress.tqdm, disable=True)),
        mock.patch.object(module.AutoTuner, "get", classmethod(lambda cls: tuner)),
        mock.patch.object(module.AutoTuner, "_profile_single_kernel", by_wall_clock),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
        module.autotune(True),
    ):
        tuner.choose_one(OP, runners, config, [called])
    chosen = tuner.choose_one(OP, runners, config, [called])
    if chosen != (runners[0], 0) or len(tuner.profiling_cache) != len(tensors):
        raise RuntimeError(f"FlashInfer has {len(tuner.profiling_cache)} entries and chose {chosen}")
    return Peer(tuner.choose_one, (OP, runners, config, [called]))
