"""`tunebook generate`: text from a model, served with its tuned plan."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tunebook.cli._output import only_json, print_json, progress_bar
from tunebook.cli._run import edge


def generate(
    model: Annotated[str, typer.Argument(help="A built-in model, or a checkpoint directory.")] = "smollm2-moe",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to continue or answer.")] = ...,  # type: ignore[assignment]
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to produce.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    cache: Annotated[
        Path | None, typer.Option(help="The cache file. Default: this environment's winners.json.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads. Default: TUNEBOOK_THREADS, else torch's.")] = None,
    record_mix: Annotated[
        Path | None,
        typer.Option(help="Add the calls that are made to this file; `tunebook tune --mix FILE` plans for them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> None:
    """Stream MODEL's continuation of a prompt. What the cache knows of the model serves; nothing is tuned."""
    with edge():
        _generate(model, prompt, max_new_tokens, temperature, cache, threads, record_mix, as_json)


def _generate(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    cache: Path | None,
    threads: int | None,
    record_mix: Path | None,
    as_json: bool,
) -> None:
    from tunebook.cli._load import load_model
    from tunebook.errors import UsageError
    from tunebook.store import Policy, resolve_policy

    if temperature < 0:
        raise UsageError(f"--temperature {temperature} is negative; 0 is greedy, 1 samples as the model says")
    with only_json(as_json), load_model(model, threads, as_json, fallback=("linear",)) as runner:
        served = resolve_policy(True).policy is not Policy.FRESH  # the switch also keeps the cache from being read here
        if served:
            with progress_bar(as_json) as progress:
                runner.autotune(cache=cache, policy=Policy.REPLAY, progress=progress)
        start, pieces, first = time.perf_counter(), [], None
        with runner.record_mix(record_mix) if record_mix is not None else nullcontext():
            for piece in runner.generate(prompt, max_new_tokens, temperature):
                first = first if first is not None else time.perf_counter() - start
                pieces.append(piece)
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        seconds = time.perf_counter() - start
    if as_json:
        plan = runner.plan
        print_json(
            {
                "model": runner.name,
                "prompt": prompt,
                "text": "".join(pieces),
                "seconds": seconds,
                "first_piece_s": first,
                "plan": {"active": bool(plan and plan.active), "verified": bool(plan and plan.verified)},
            }
        )
    else:
        sys.stdout.write("\n")
