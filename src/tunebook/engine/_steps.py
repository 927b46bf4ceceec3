"""Model steps: a prefill, or a decode step on a key-value cache that is put back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import uncollected
from tunebook.engine._phases import DECODE_CONTEXT, PhaseRequest, token_rows


def make_step(
    model: Any, tokenizer: Any, device: Device, request: PhaseRequest, *, seed: int = 0, keep: int = 1
) -> Callable[[], Any]:
    """A repeatable step: returns the logits of the last `keep` positions, [batch, keep, vocabulary].

    Runs in inference mode on the device's own stream. Decode steps share one key-value cache of `DECODE_CONTEXT` tokens,
    filled once here without being collected, and cropped back after each step. Another `seed` reads other text.
    """
    import torch

    seed = request.batch + 1000 * seed
    rows = token_rows(model, tokenizer, request.batch, request.tokens, seed=seed)
    if request.phase == "prefill":

        def prefill() -> Any:
            with torch.inference_mode(), device.stream():
                return model(input_ids=rows, use_cache=True, logits_to_keep=keep).logits

        return prefill

    context = token_rows(model, tokenizer, request.batch, DECODE_CONTEXT, seed=seed + 1)
    with uncollected(), torch.inference_mode(), device.stream():
        filled = model(input_ids=context, use_cache=True, logits_to_keep=1)
    cache = filled.past_key_values
    if hasattr(cache, "activate_past_recording"):  # else a sliding window that is full cannot be put back
        cache.activate_past_recording()

    def decode() -> Any:
        with torch.inference_mode(), device.stream():
            logits = model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
            cache.crop(-request.tokens)
        return logits

    return decode
