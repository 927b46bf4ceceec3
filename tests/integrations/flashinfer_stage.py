"""What the tests of FlashInfer under tunebook share: FlashInfer's own autotuner on CPU tensors, and runners for it.

The autotuner is the real package's. Two things are not: its clock, which times CUDA kernels, is here a table with noise; and
whether a CUDA stream is being captured is answered with no.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from tunebook.records import Verdict

OP = "demo::product"


class Stage:
    """A tuner that knows nothing. `costs` gives milliseconds by (runner's class, tactic), or (class, tactic, rows)."""

    def __init__(self, module: Any, tuner: Any) -> None:
        self.module = module
        self.tuner = tuner
        self.costs: dict[tuple[Any, ...], float] = {}
        self.noise = 0.02  #: of samples, as the standard deviation of their logarithm
        self.sampled: list[tuple[str, Any, int, int]] = []  #: class, tactic, repeat and warm-up of each sample
        self.rows: list[int] = []  #: the rows of input 0 of each
        self.grouped: list[bool] = []  #: whether FlashInfer would have reduced it over its process group
        self._rng = random.Random(0)
        self.runner = _runner(module)

    def measuring(self) -> Any:
        return importlib.import_module("flashinfer.autotuner.autotuner")._profile_measurement_scope()

    def start_again(self) -> None:
        """As a new process does: a tuner that knows nothing."""
        self.tuner = self.module.AutoTuner()
        self.sampled.clear()
        self.rows.clear()
        self.grouped.clear()

    def config(self, buckets: tuple[int, ...] = (), **further: Any) -> Any:
        """The rows of input 0, rounded down to `buckets`; without buckets, every size is one of its own."""
        specs: tuple[Any, ...] = ()
        if buckets:
            mapper = self.module.make_bucket_mapper(buckets)
            specs = (self.module.DynamicTensorSpec((0,), (0,), buckets, mapper),)
        return self.module.TuningConfig(dynamic_tensor_specs=specs, **further)

    def choose(self, op: str, runners: list[Any], config: Any, inputs: list[Any], **kwargs: Any) -> tuple[str, Any]:
        """FlashInfer's choice: the runner's class and the tactic."""
        runner, tactic = self.tuner.choose_one(op, runners, config, inputs, **kwargs)
        return type(runner).__name__, tactic

    def milliseconds(self, runner: Any, tactic: Any, rows: int) -> float:
        name = type(runner).__name__
        cost = self.costs.get((name, tactic, rows), self.costs.get((name, tactic), 1.0))
        return cost * self._rng.lognormvariate(0.0, self.noise)


def _profile(stage: Stage) -> Callable[..., float]:
    def profile(
        self: Any, runner: Any, inputs: Any, tactic: Any, config: Any, batches: Any = None, **kwargs: Any
    ) -> float:
        batches = kwargs.pop("input_tensor_batches", batches) or [inputs]
        repeat = getattr(config, "profiling_repeat", None) or self.repeat
        with stage.measuring():
            for turn in range(self.warmup + repeat):
                runner(batches[turn % len(batches)], tactic=tactic, **kwargs)
        stage.sampled.append((type(runner).__name__, tactic, repeat, self.warmup))
        stage.rows.append(int(inputs[0].shape[0]))
        stage.grouped.append(stage.module.get_autotune_process_group() is not None)
        return stage.milliseconds(runner, tactic, int(inputs[0].shape[0]))

    return profile


@contextlib.contextmanager
def flashinfer_stage() -> Iterator[Stage]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("flashinfer.autotuner")
    whole = importlib.import_module("flashinfer.autotuner.autotuner")
    whole.logger.setLevel(logging.ERROR)
    stage = Stage(module, module.AutoTuner())
    progress = importlib.import_module("tqdm")
    with (
        mock.patch.object(progress, "tqdm", functools.partial(progress.tqdm, disable=True)),
        mock.patch.object(module.AutoTuner, "get", classmethod(lambda cls: stage.tuner)),
        mock.patch.object(module.AutoTuner, "_profile_single_kernel", _profile(stage)),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
    ):
        yield stage


def _runner(module: Any) -> Callable[..., Any]:
    """``runner("Blocked", (1, 2, 3))``: a runner of a class of that name that multiplies its two inputs.

    `broken` maps tactics to what they do instead: an exception to raise, or a function of the inputs. `extras` is what it
    adds to FlashInfer's key. `valid` is its hook, if it has one; `out`: it writes into its third input.
    """

    def make(
        name: str,
        tactics: tuple[Any, ...] | Callable[..., list[Any]] | Exception,
        broken: dict[Any, Any] | None = None,
        extras: Callable[[Any], tuple[Any, ...]] = lambda inputs: (),
        valid: Callable[[Any, Any], bool] | None = None,
        out: bool = False,
        prepares: Callable[[], Any] | None = None,
        config: Any = None,
    ) -> Any:
        wrong = broken or {}

        def multiply(inputs: Any) -> Any:
            product = inputs[0] @ inputs[1]
            if not out:
                return product
            inputs[2].copy_(product)
            return None

        def get_valid_tactics(self: Any, inputs: Any, profile: Any) -> list[Any]:
            if isinstance(tactics, Exception):
                raise tactics
            return tactics(inputs, profile) if callable(tactics) else list(tactics)

        def forward(self: Any, inputs: Any, tactic: Any = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
            if do_preparation:
                return prepares() if prepares is not None else None
            what = wrong.get(tactic, multiply)
            if isinstance(what, Exception):
                raise what
            return what(inputs)

        body: dict[str, Any] = {
            "get_valid_tactics": get_valid_tactics,
            "forward": forward,
            "get_cache_key_extras": lambda self, inputs: extras(inputs),
            "__init__": lambda self: setattr(self, "identity", object()),
        }
        if valid is not None:
            body["validate_tactic"] = lambda self, inputs, tactic: valid(inputs, tactic)
        return type(name, (module.TunableRunner,), body)()

    return make


def product_inputs(rows: int = 16, dtype: torch.dtype = torch.float32, out: bool = False) -> list[torch.Tensor]:
    """Rows of 32 numbers, and a matrix of 32 by 24; a place for the product too, where `out`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 32, generator=generator).to(dtype)
    weight = torch.randn(32, 24, generator=generator).to(dtype)
    return [x, weight, torch.empty(rows, 24, dtype=dtype)] if out else [x, weight]


def tuned(stage: Stage, runners: list[Any], config: Any, inputs: list[Any], op: str = OP, **options: Any) -> Any:
    """One block with one call, tuned afresh."""
    import tunebook as tb

    options = {"policy": "fresh", "seed": 1, **options}
    with tb.flashinfer.autotune(**options) as session:
        stage.choose(op, runners, config, inputs)
    return session


def only(session: Any) -> Verdict:
    """The verdict on its one problem."""
    from tunebook.records import Verdict

    (verdict,) = session.outcome.verdicts.values()
    assert isinstance(verdict, Verdict)
    return verdict
