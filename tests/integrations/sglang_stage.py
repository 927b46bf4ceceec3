"""What the tests of SGLang under tunebook share: the autotune step of the published wheel, with stubs for what is around it.

Real are SGLang's step (``flashinfer_autotune.py``), its environment variables, its plug-ins and hooks, its MegaMoE records, and
below them all that `flashinfer_stage` says. Stubs are: the packages' own ``__init__`` and the server's configuration, which
import the whole engine; the model runner, which holds a model; the scheduler, of which only the name of a method counts; and
CUDA's streams and the device's capability, for hardware that is not here.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.integrations.engine_wheels import SGLANG
from tests.integrations.flashinfer_stage import Stage, product_inputs

OP = "demo::product"
AUTOTUNE = "sglang.srt.model_executor.runner.flashinfer_autotune"
PACKAGES = (
    "sglang",
    "sglang.srt",
    "sglang.srt.layers",
    "sglang.srt.layers.moe",
    "sglang.srt.managers",
    "sglang.srt.model_executor",
    "sglang.srt.model_executor.runner",
)


class Stream:
    """A CUDA stream by name; `current` is the one on which work would be put."""

    current = "default"

    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        pass


@contextlib.contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    before, Stream.current = Stream.current, stream.name
    try:
        yield
    finally:
        Stream.current = before


class Dummy:
    """A model's dummy run: a call of each op, with runners of its own each time, as FlashInfer's ops make them."""

    def __init__(
        self, stage: Stage, rows: int = 16, tactics: tuple[int, ...] = (1, 2), ops: tuple[str, ...] = (OP,)
    ) -> None:
        self.stage, self.rows, self.tactics, self.ops = stage, rows, tactics, ops
        self.served: list[Any] = []
        self.config = stage.config()

    def __call__(self) -> None:
        for op in self.ops:
            runner = self.stage.runner("Plain", self.tactics)
            self.served.append(self.stage.choose(op, [runner], self.config, product_inputs(self.rows))[1])


def served(stage: Stage, rows: int = 16) -> Any:
    """The tactic that a new runner is served."""
    return stage.choose(OP, [stage.runner("Plain", (1, 2))], stage.config(), product_inputs(rows))[1]


def entries(file: Path) -> dict[str, Any]:
    """Runner and tactic by key of a v1 file."""
    return {key: value[:2] for key, value in json.loads(file.read_text()).items() if not key.startswith("_")}


class Scheduler:
    """SGLang's, as far as a start is concerned: its event loop begins when all steps are over."""

    def run_event_loop(self) -> str:
        return "serving"


class Engine:
    """An engine's process: `step`, `draft` and `extend` are SGLang's functions over a dummy run that the test gives."""

    def __init__(self, stage: Stage, home: Path) -> None:
        self.stage = stage
        self.home = home
        self.skip_ops: tuple[str, ...] = ()
        self.moe_backend = "flashinfer_cutlass"
        self.tp_rank, self.tp_group = 0, SimpleNamespace(world_size=1, cpu_group=None)
        self.dummy_runs: list[str] = []
        self.scheduler = Scheduler()

    def model_runner(self, draft: bool = False, **more: Any) -> Any:
        given = {
            "device": "cuda",
            "gpu_id": 0,
            "dtype": torch.float32,
            "forward_stream": Stream("forward"),
            "is_draft_worker": draft,
            "is_generation": True,
            "model_config": SimpleNamespace(hf_config=object(), quantization=None),
            "spec_algorithm": SimpleNamespace(is_speculative=lambda: False),
            "attn_backend": SimpleNamespace(extend_dummy_seqs_capped_by_req_pool=False),
            "canary_manager": None,
            "model": SimpleNamespace(),
            "max_running_requests": 8,
            "max_decode_logits_rows": lambda: 8,
            "decode_num_tokens_per_req": lambda **_: 1,
        }
        return SimpleNamespace(**(given | more))

    @property
    def module(self) -> Any:
        return sys.modules[AUTOTUNE]

    def file(self, draft: bool = False) -> Path:
        """SGLang's v1 file of this rank."""
        found: Path = self.module.flashinfer_autotune_cache_path(self.model_runner(draft))
        return found

    @property
    def ours(self) -> Path:
        return self.file().with_name(f"{self.file().stem}_tunebook.json")

    @property
    def runs(self) -> list[Path]:
        """The run files of tunebook beside SGLang's files, of target and draft, the oldest first."""
        return sorted(self.home.rglob(f"runs/rank_tp{self.tp_rank}_pp0_dp0_tunebook.*.jsonl"), key=_age)

    @property
    def fresh_files(self) -> list[Path]:
        """What SGLang wrote of single starts."""
        return sorted(self.home.rglob(f"runs/rank_tp{self.tp_rank}_pp0_dp0.*.json"), key=_age)

    def _dummy(self, forward: Callable[[], Any]) -> Callable[..., Any]:
        def run(**_: Any) -> Any:
            self.dummy_runs.append(Stream.current)
            return forward()

        return run

    def step(self, forward: Callable[[], Any], draft: bool = False) -> None:
        self.module.run_flashinfer_autotune_forward(self.model_runner(draft), self._dummy(forward), run_lm_head=False)

    def extend(self, forward: Callable[[], Any], model: Any = None) -> None:
        """The further step at the length of a prefill; a `model` may bring its own run."""
        runner = SimpleNamespace(
            model_runner=self.model_runner(model=model or SimpleNamespace()),
            _alloc_dummy_decode_buffers=lambda *_, **__: object(),
            _dummy_run=self._dummy(forward),
        )
        self.module.maybe_flashinfer_autotune_extend(runner, decode_num_tokens=1)

    def serve(self) -> None:
        """The end of the start."""
        scheduler = sys.modules["sglang.srt.managers.scheduler"]
        assert scheduler.Scheduler().run_event_loop() == "serving"

    def start_again(self) -> None:
        """As a new process: a tuner that knows nothing, a start of its own."""
        self.serve()
        self.stage.start_again()
        self.dummy_runs.clear()


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def stubs(engine: Engine) -> dict[str, types.ModuleType]:
    """What SGLang's step imports, by name."""
    kernel = SimpleNamespace(disable_flashinfer_autotune=False)

    def get_exec() -> Any:
        kernel.flashinfer_autotune_skip_ops = list(engine.skip_ops)
        return SimpleNamespace(kernel=kernel, moe=SimpleNamespace(moe_runner_backend=engine.moe_backend))

    def get_parallel() -> Any:
        return SimpleNamespace(
            tp_size=engine.tp_group.world_size,
            pp_size=1,
            attn_dp_size=1,
            moe_ep_size=1,
            tp_rank=engine.tp_rank,
            pp_rank=0,
            dp_rank=None,
            tp_group=engine.tp_group,
        )

    @contextlib.contextmanager
    def autotune_dummy_run_mode(*, run_lm_head: bool) -> Iterator[None]:
        yield

    contents: dict[str, dict[str, Any]] = {
        "model_executor.forward_batch_info": {"ForwardMode": enum.Enum("ForwardMode", ["EXTEND"])},
        "runtime_context": {
            "get_disagg": lambda: SimpleNamespace(disaggregation_mode="null"),
            "get_exec": get_exec,
            "get_model": lambda: SimpleNamespace(model_path="demo/model", quantization=None),
            "get_parallel": get_parallel,
            "get_schedule": lambda: SimpleNamespace(max_prefill_tokens=64),
            "get_spec": SimpleNamespace,
            "max_prefill_buffer_tokens": lambda: None,
            "max_speculative_num_draft_tokens": lambda: None,
        },
        "utils": {
            "empty_context": contextlib.nullcontext,
            "log_info_on_rank0": lambda logger, text: logger.info(text),
        },
        "utils.common": {"get_eager_max_batch_size": lambda requests: requests},
        "layers.logits_processor": {"autotune_dummy_run_mode": autotune_dummy_run_mode},
        "managers.scheduler": {
            "Scheduler": type("Scheduler", (Scheduler,), {"run_event_loop": Scheduler.run_event_loop})
        },
        "platforms": {"current_platform": SimpleNamespace(get_device_uuid=lambda number: "uuid")},
    }
    made: dict[str, types.ModuleType] = {}
    for name in PACKAGES:
        made[name] = types.ModuleType(name)
        made[name].__path__ = [str(SGLANG.place.joinpath(*name.split(".")))]
    for name, content in contents.items():
        made[f"sglang.srt.{name}"] = module = types.ModuleType(f"sglang.srt.{name}")
        vars(module).update(content)
    return made


@contextlib.contextmanager
def sglang_stage(stage: Stage, home: Path) -> Iterator[Engine]:
    """An engine's process, in which the step is imported and no plug-in was loaded yet."""
    before = {name for name in sys.modules if name.partition(".")[0] == "sglang"}
    assert not before, "another SGLang is imported in this process"
    engine = Engine(stage, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SGLANG.place))
        patch.setenv("SGLANG_CACHE_DIR", str(home))
        patch.delenv("SGLANG_FLASHINFER_AUTOTUNE_EXTEND", raising=False)
        patch.setattr(torch.cuda, "current_stream", lambda *_: Stream("default"))
        patch.setattr(torch.cuda, "stream", on_stream)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        sys.modules.update(stubs(engine))
        try:
            importlib.import_module(AUTOTUNE)
            yield engine
        finally:
            engine.serve()
            for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
                del sys.modules[name]
