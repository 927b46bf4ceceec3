"""Phases: the decode and prefill steps that a model is tuned and verified on, and their inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from tunebook.errors import UsageError

PhaseName = Literal["decode", "prefill"]

DEFAULT_DECODE = (1, 4, 16)
DEFAULT_PREFILL = (128, 512)
#: Tokens that stand in the key-value cache when a decode step is measured.
DECODE_CONTEXT = 32
#: No step holds more tokens than this (a decode's context counts): more is a slip of the finger, and no memory holds it.
MAX_TOKENS = 1 << 20

#: What dummy runs read when the model has a tokenizer: routing is then the model's own on ordinary text.
TEXT = """\
A tuner that measures once believes whatever the machine was doing at that moment. On a quiet afternoon the first kernel
wins; while a backup runs, the second. Both answers are written down with the same confidence, and the next start trusts
them. The harbour master of a small port once explained tides to visitors in the same way: look at the water twice, and
never at the same hour. Salt, rope and diesel were in the air, and a child asked why boats do not simply wait. Some do.

To make bread, mix 500 grams of flour with 350 grams of water, 10 grams of salt and a little yeast. Fold the dough every
half hour, four times, and let it rest overnight in a cool place. Bake it hot, first covered, then open, until the crust
is dark. What changes from day to day is the room: a warm kitchen needs less yeast, a cold one more patience.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

The committee met on 14 March 1987 and voted nine to two. Its report, forty pages long, lists bridges by age, load and
cost of repair; a table at the end compares steel with stone. Nobody expected the stone bridges to do so well. In the
mountains, rivers carry gravel that no model predicted, and engineers went back to measure again, this time in spring.

Q: How far is the moon? A: About 384,400 kilometres on average, a little more than a light-second away.
Q: What is a mixture of experts? A: A layer with many small networks, of which a router picks a few for every token.
"""


@dataclass(frozen=True)
class PhaseRequest:
    """One step to tune and verify: `batch` sequences advanced by `tokens` each.

    Raises UsageError for a size below 1, and for one of more than `MAX_TOKENS` tokens.
    """

    phase: PhaseName
    batch: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.batch, self.tokens) < 1:
            raise UsageError(f"{self} is not a size: batch sizes and lengths are at least 1")
        length = max(self.tokens, DECODE_CONTEXT) if self.phase == "decode" else self.tokens
        if self.batch * length > MAX_TOKENS:
            raise UsageError(
                f"{self} is too large: {self.batch} sequences of {length} tokens are more than the {MAX_TOKENS} tokens "
                "that one step may hold; give a smaller size"
            )

    def __str__(self) -> str:
        return f"decode {self.batch}" if self.phase == "decode" else f"prefill {self.tokens}"


def requests(
    decode: Iterable[int] = DEFAULT_DECODE, prefill: Iterable[int] = DEFAULT_PREFILL
) -> tuple[PhaseRequest, ...]:
    """The requested phases, ascending. Raises UsageError for an impossible size, or for none at all."""
    found = {PhaseRequest("decode", size, 1) for size in decode} | {
        PhaseRequest("prefill", 1, size) for size in prefill
    }
    if not found:
        raise UsageError("no phase to tune: give at least one decode batch size or one prefill length")
    return tuple(sorted(found, key=lambda r: (r.phase, r.batch, r.tokens)))


def merged(wanted: Iterable[PhaseRequest], known: Iterable[str]) -> tuple[PhaseRequest, ...]:
    """`wanted`, and the phases that a plan names (``decode 16``, ``prefill 512``); what is none is left out."""
    found = set(wanted)
    for text in known:
        phase, _, size = text.partition(" ")
        if not re.fullmatch("[0-9]{1,18}", size) or phase not in ("decode", "prefill"):
            continue
        with suppress(UsageError):  # a size that cannot be, in a file that somebody wrote
            found.add(
                PhaseRequest("decode", int(size), 1) if phase == "decode" else PhaseRequest("prefill", 1, int(size))
            )
    return tuple(sorted(found, key=lambda r: (r.phase, r.batch, r.tokens)))


def token_rows(model: Any, tokenizer: Any, rows: int, length: int, seed: int = 0) -> Any:
    """Token ids [rows, length] int64: stretches of real text, each row from another place, or random ids without a tokenizer."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    if tokenizer is None:
        return torch.randint(0, vocabulary, (rows, length), generator=generator)
    ids: Sequence[int] = tokenizer(TEXT)["input_ids"]
    text = torch.tensor([token for token in ids if token < vocabulary], dtype=torch.int64)
    starts = torch.randint(0, len(text), (rows, 1), generator=generator)
    return text[(starts + torch.arange(length)) % len(text)]
