"""Generation: greedy or sampled decoding with Transformers' own loop, streamed piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from tunebook.errors import ModelError, UsageError


def encode(tokenizer: Any, prompt: str, model: str) -> dict[str, Any]:
    """A prompt as input ids and mask [1, tokens] int64, through the chat template where the tokenizer has one.

    Raises ModelError for a model without a tokenizer, UsageError for an empty prompt.
    """
    if tokenizer is None:
        raise ModelError(f"model {model} has no tokenizer, so it cannot read a prompt; use smollm2-moe or a checkpoint")
    if not prompt.strip():
        raise UsageError("the prompt is empty; give --prompt some text")
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": "user", "content": prompt}]
        return dict(
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        )
    return dict(tokenizer(prompt, return_tensors="pt"))


def stream(
    model: Any, tokenizer: Any, inputs: dict[str, Any], max_new_tokens: int, temperature: float
) -> Iterator[str]:
    """The continuation, piece by piece as words are complete. An error of the model is raised here, in the caller."""
    import torch
    from transformers import TextIteratorStreamer

    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} is not a number of tokens; it is at least 1")
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=0.1)
    failed: list[BaseException] = []
    stop = threading.Event()
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature

    def work() -> None:
        try:
            with torch.inference_mode():
                model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    streamer=pieces,
                    stopping_criteria=[lambda ids, scores: torch.full((ids.shape[0],), stop.is_set())],
                    **options,
                )
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, whatever it is
            failed.append(error)
            pieces.end()

    thread = threading.Thread(target=work, name="tunebook-generate", daemon=True)
    thread.start()
    try:
        while True:
            try:
                yield next(pieces)
            except queue.Empty:
                continue
            except StopIteration:
                break
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
