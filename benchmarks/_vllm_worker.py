"""vLLM as a worker of end_to_end.py. Runs with the Python of vLLM's own environment; imports nothing of tunebook.

The engine core runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0), so that one call of `LLMEngine.step` is one step:
scheduling, forward, sampling, the new tokens.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

from _end_to_end_protocol import WARM, leave_folder, memory, serve, timed

#: Decode steps before the sequences begin anew: the context stays about as long as the other contestants'.
STEPS = 16
#: The longest sequence, and the most tokens of one step: a whole prompt, and the prompts of all sequences, fit into one.
LONGEST, MOST_TOKENS = 1024, 2048
CACHE_BYTES = 1 << 29


class Engine:
    """One model and the sequences that it decodes now."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.prompts: dict[str, list[list[int]]] = {}
        self._names = itertools.count()
        self._running: list[str] = []
        self._phase = ""
        self._left = 0

    def load(self, path: str, compiled: bool, most: int) -> dict[str, Any]:
        """Load a checkpoint for up to `most` sequences; `compiled`: without ``enforce_eager``."""
        import torch

        vllm: Any = importlib.import_module("vllm")
        start = time.perf_counter()
        self.llm = vllm.LLM(
            path,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=not compiled,
            enable_prefix_caching=False,
            max_model_len=LONGEST,
            max_num_batched_tokens=MOST_TOKENS,
            max_num_seqs=most,
            kv_cache_memory_bytes=CACHE_BYTES,
        )
        return {
            "version": vllm.__version__,
            "threads": torch.get_num_threads(),
            "seconds": time.perf_counter() - start,
        }

    def prepare(self, prompts: dict[str, list[list[int]]]) -> None:
        """The prompts of each phase, as token ids; the first step of a phase reads them."""
        self.prompts = prompts

    def run(self, phase: str, steps: int) -> dict[str, Any]:
        """`steps` steps of a phase in a row, timed; see `timed`."""
        if phase.startswith("prefill"):
            return self._prefills(phase, steps)
        self._decoding(phase, 1 + steps)
        return timed(self._decode, self._decode, steps)

    def experts(self, phase: str) -> list[int]:
        """How many experts a layer uses in a decode step: a count for each layer and step of several; empty where compiled."""
        import torch

        chosen: list[int] = []
        most = self.llm.llm_engine.model_config.hf_config.num_experts_per_tok

        def note(_: Any, __: Any, output: Any) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            chosen.append(int(torch.unique(logits.topk(most, dim=-1).indices).numel()))

        def hook(model: Any) -> list[Any]:
            return [m.register_forward_hook(note) for name, m in model.named_modules() if name.endswith(".gate")]

        self._decoding(phase, STEPS)
        (hooks,) = self.llm.apply_model(hook)
        for _ in range(STEPS):
            self._decode()
        for one in hooks:
            one.remove()
        return chosen

    def _decoding(self, phase: str, steps: int) -> None:
        """Have the sequences of a phase running, with at least `steps` steps before them."""
        if self._phase != phase or self._left < steps:
            self._stop()
            self._left = max(STEPS, steps)
            self._add(self.prompts[phase], 1 + self._left)
            self._step(len(self.prompts[phase]))
            self._phase = phase

    def _decode(self) -> list[int]:
        self._left -= 1
        return self._step(len(self.prompts[self._phase]))

    def _prefills(self, phase: str, steps: int) -> dict[str, Any]:
        """Steps that read fresh prompts; that the engine takes them in is not part of them."""
        self._decoding(WARM, 1)
        self._decode()
        self._stop()
        answers = []
        for _ in range(steps):
            self._add(self.prompts[phase], 1)
            answers.append(timed(lambda: self._step(len(self.prompts[phase])), None, 1))
            if self.llm.llm_engine.has_unfinished_requests():
                raise RuntimeError("the prompt was not read in one step")
        means = {name: sum(answer[name] for answer in answers) / steps for name in ("seconds", "busy")}
        return {**means, "tokens": answers[-1]["tokens"]}

    def _add(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        vllm: Any = importlib.import_module("vllm")
        greedy = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._running = [str(next(self._names)) for _ in prompts]
        for name, prompt in zip(self._running, prompts, strict=True):
            self.llm.llm_engine.add_request(name, {"prompt_token_ids": list(prompt)}, greedy)

    def _step(self, sequences: int) -> list[int]:
        outputs = self.llm.llm_engine.step()
        if len(outputs) != sequences:
            raise RuntimeError(f"a step of {sequences} sequences gave {len(outputs)} tokens")
        return [output.outputs[0].token_ids[-1] for output in outputs]

    def _stop(self) -> None:
        """End what is running."""
        self.llm.llm_engine.abort_request(self._running)
        self._running, self._phase = [], ""


if __name__ == "__main__":
    leave_folder()
    engine = Engine()
    serve(
        {
            "load": engine.load,
            "prepare": engine.prepare,
            "run": engine.run,
            "experts": engine.experts,
            "memory": memory,
        }
    )
