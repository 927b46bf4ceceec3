"""What the ranks of the tests do, each in a process of its own. What a tactic takes, it sleeps: no core is needed for that."""

from __future__ import annotations

import hashlib
import logging
import os
import runpy
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

#: What a call of the default takes, and of the two tactics, in seconds.
DEFAULT_S, FAST_S, SLOW_S = 2e-3, 5e-4, 4e-3


#: When each call of a tactic ended, in this process.
ENDS: list[float] = []


def prepare(directory: Path, timeout: float = 300.0, **variables: str) -> list[tuple[float, str]]:
    """Variables of this process alone, and a list that tunebook's messages go to, each with its time."""
    os.environ |= {
        "TUNEBOOK_CACHE_DIR": str(directory / "home"),
        "TUNEBOOK_RANK_TIMEOUT_S": str(timeout),
        "TUNEBOOK_THREADS": "1",
        "TUNEBOOK_ISOLATE": "never",
        **variables,
    }
    said: list[tuple[float, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((time.monotonic(), record.getMessage()))

    logger = logging.getLogger("tunebook")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Keep())
    return said


def declare(*, version: str = "1", factor: float = 2.0, on_call: Callable[[str], None] = lambda name: None) -> Any:
    """An op that doubles, its default, and two tactics; `on_call` is told of each call."""
    import torch

    import tunebook as tb

    def sleeps(name: str, seconds: float) -> None:
        on_call(name)
        time.sleep(seconds)
        ENDS.append(time.monotonic())

    @tb.op("demo::double", buckets={"x": {0: tb.pow2(max=64)}})
    def double(x: torch.Tensor) -> torch.Tensor:
        sleeps("default", DEFAULT_S)
        return x * 2

    @double.runner("napping", space={"quick": (True, False)}, version=version)
    def napping(x: torch.Tensor, *, quick: bool) -> torch.Tensor:
        sleeps("quick" if quick else "slow", FAST_S if quick else SLOW_S)
        return x * factor

    return double


def winners(outcome: Any) -> str:
    """The bytes of all verdicts, as one digest."""
    data = msgspec.json.encode(dict(sorted(outcome.verdicts.items())), order="sorted")
    return hashlib.sha256(data).hexdigest()


def group() -> Any:
    import torch.distributed as dist

    return dist.group.WORLD


def tune(
    rank: int,
    size: int,
    directory: Path,
    *,
    sizes: Sequence[Sequence[int]] = ((4,),),
    options: Sequence[dict[str, Any]] = ({},),
    variables: Sequence[dict[str, Any]] = ({},),
    start: Sequence[dict[str, Any]] = ({},),
) -> dict[str, Any]:
    """A block with calls of these sizes. Of each list this rank takes its own entry, or the last one.

    `start` says how it begins: the `version` of the tactics, `late` seconds before the block; `alone`, sizes to tune without
    the others first; in the block it `dawdles` so many seconds, or `fails` with a message; in the tuning it does so or it
    `stops`, as a process that hangs.
    """
    import torch

    import tunebook as tb

    said = prepare(directory, **{"timeout": 300.0, **mine(variables, rank)})
    begin = mine(start, rank)
    served: list[str] = []
    tuning_now = [False]

    def on_call(name: str) -> None:
        served.append(name)
        if tuning_now[0] and name == "default" and "fails_later" in begin:
            raise RuntimeError(begin["fails_later"])
        if tuning_now[0] and "stops" in begin:
            subprocess.Popen(["sh", "-c", f"sleep {begin['stops']}; kill -9 {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    double = declare(version=begin.get("version", "1"), on_call=on_call)
    options_ = {"cache": str(directory / "cache.json"), "budget_s": 20.0, **mine(options, rank)}
    time.sleep(begin.get("late", 0.0))
    with torch.inference_mode():
        if "alone" in begin:
            with tb.autotune(**options_):
                for x in begin["alone"]:
                    double(torch.ones(x, 2))
            said.clear()
        with tb.autotune(group=group(), **options_) as tuning:
            for x in mine(sizes, rank):
                double(torch.ones(x, 2))
            time.sleep(begin.get("dawdles", 0.0))
            if "fails" in begin:
                raise RuntimeError(begin["fails"])
            tuning_now[0] = True
        tuning_now[0] = False
        served.clear()
        for x in (1, 2, 4, 8, 16, 32, 64):
            double(torch.ones(x, 2))
    return {**told(tuning), "served": served, "said": said, "ends": ENDS}


def told(tuning: Any) -> dict[str, Any]:
    """What a block came to."""
    outcome = tuning.outcome
    return {
        "winners": winners(outcome),
        "tactics": {key: tactic.name for key, tactic in sorted(outcome.tactics.items())},
        "fresh": sorted(outcome.fresh),
        "seen": outcome.seen,
        "rejected": sorted({(r.tactic, r.reason, r.detail) for _, r in outcome.rejected}),
        "published": outcome.published,
        "run": tuning.run,
    }


def mine(entries: Sequence[Any], rank: int) -> Any:
    return entries[min(rank, len(entries) - 1)]


def declare_sum(rank: int, size: int, flaw: str = "", flawed_rank: int = -1) -> Any:
    """An op that adds up over all ranks: all_reduce, or reduce_scatter and all_gather. `flaw` adds a bad third."""
    import torch
    import torch.distributed as dist

    import tunebook as tb

    # their names have changed, and the former ones warn
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    @tb.op("demo::sum", buckets={"x": {0: tb.pow2(max=256)}}, communicates=True)
    def total(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @total.runner("in_parts", version="1", supports=lambda problem: problem.dims[0].size % size == 0)
    def in_parts(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] % size:
            y = x.clone()
            dist.all_reduce(y)
            return y
        part = x.new_empty((x.shape[0] // size, *x.shape[1:]))
        scatter(part, x.contiguous())
        y = torch.empty_like(x)
        gather(y, part)
        return y

    if not flaw:
        return total

    calls = [0]

    @total.runner("flawed", version="1")
    def flawed(x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        here = rank == flawed_rank
        if here and flaw == "before":
            raise RuntimeError("no such channel")
        y = x.clone()
        dist.all_reduce(y)
        if here and flaw == "after":
            raise RuntimeError("a bad ending")
        if here and flaw == "wrong":
            y += 1
        if here and flaw == "late" and calls[0] > 12:
            raise RuntimeError("worn out")
        return y

    return total


def tune_sum(
    rank: int, size: int, directory: Path, flaw: str = "", flawed_rank: int = -1, timeout: float = 300.0
) -> dict[str, Any]:
    """A block with a call of the op that communicates, then calls of what serves."""
    import torch

    import tunebook as tb

    said = prepare(directory, timeout)
    total = declare_sum(rank, size, flaw, flawed_rank)
    with torch.inference_mode():
        with tb.autotune(group=group(), cache=str(directory / "cache.json"), budget_s=20.0) as tuning:
            total(torch.full((64, 2), float(rank + 1)))
        right = bool((total(torch.full((64, 2), float(rank + 1))) == size * (size + 1) / 2).all())
    return {**told(tuning), "right": right, "said": said}


def replay_sum(rank: int, size: int, directory: Path) -> dict[str, Any]:
    """An op that communicates and whose runner wins by far; then a start from the cache where the last rank lacks that."""
    import torch
    import torch.distributed as dist

    import tunebook as tb
    from tunebook.dispatch import FREE

    said = prepare(directory)
    called: list[str] = []

    @tb.op("demo::sum", buckets={"x": {0: tb.pow2(max=1)}}, communicates=True)
    def total(x: torch.Tensor) -> torch.Tensor:
        called.append("default")
        time.sleep(DEFAULT_S)
        y = x.clone()
        dist.all_reduce(y)
        return y

    @total.runner("quick", version="1")
    def quick(x: torch.Tensor) -> torch.Tensor:
        called.append("quick")
        y = x.clone()
        dist.all_reduce(y)
        return y

    options: dict[str, Any] = {"cache": str(directory / "cache.json"), "group": group()}
    found: list[str] = []
    with torch.inference_mode():
        with tb.autotune(**options) as tuning:
            total(torch.ones(1))
        total(torch.ones(1))
        found.append(called[-1])
        for lacking in (False, True):
            if lacking and rank == size - 1:
                total.remove_runner("quick")
            FREE.install({}, replace=True)
            with tb.autotune(policy="replay", **options):
                total(torch.ones(1))
            found.append(called[-1])
    return {**told(tuning), "served": found, "said": said}


def tune_in_subgroup(rank: int, size: int, directory: Path) -> dict[str, Any]:
    """Ranks 1 and 3 of four tune together; the last of them fails in a second block. The others cannot take part."""
    import torch
    import torch.distributed as dist

    import tunebook as tb

    prepare(directory)
    some = dist.new_group([1, 3])
    double = declare()
    if rank not in (1, 3):
        try:
            with tb.autotune(group=some):
                pass
        except ValueError as error:
            return {"error": str(error)}
    with torch.inference_mode():
        with tb.autotune(group=some, cache=str(directory / "cache.json")) as tuning:
            double(torch.ones(4, 2))
        try:
            with tb.autotune(group=some, cache=str(directory / "cache.json")):
                double(torch.ones(64, 2))
                if rank == 3:
                    raise KeyError("spare wheel")
        except Exception as error:  # noqa: BLE001 - what it is, is what is asked for
            return {**told(tuning), "error": f"{type(error).__name__} {error}", "number": getattr(error, "rank", None)}
    return told(tuning)


def tune_on_devices(rank: int, size: int, directory: Path) -> dict[str, Any]:
    """A session on a device that no other rank has, and with another version of torch, as far as it is told."""
    import torch

    from tunebook.devices import device_of
    from tunebook.dispatch import collecting
    from tunebook.records import Environment
    from tunebook.store import resolve_policy
    from tunebook.tuner import Collection, Session

    said = prepare(directory)
    double = declare()

    class Own(type(device_of("cpu"))):  # type: ignore[misc]  # a class that is found at run time
        name = f"cpu {rank}"

        def environment(self) -> Environment:
            told = super().environment()
            return Environment(hard=told.hard, soft={**told.soft, "torch": f"9.{rank}"})

    session = Session(resolve_policy(), cache=str(directory / "cache.json"), device=Own())
    session.join(group(), {})
    collection = Collection(session.device)
    with torch.inference_mode():
        with collecting(collection):
            double(torch.ones(64, 2))
        outcome = session.tune(collection, 20.0)
    session.publish(outcome)
    session.finish()
    return {"winners": winners(outcome), "said": said, "ends": ENDS}


def tune_model(rank: int, size: int, directory: Path) -> dict[str, Any]:
    """A small model, twice: the second start finds everything in the cache."""
    from tunebook.engine import ModelRunner, requests
    from tunebook.engine.models import LoadedModel, fingerprint, random_model, tiny_config
    from tunebook.tuner import Selection

    said = prepare(directory)
    made = random_model(tiny_config("mixtral"), "float32")
    model = LoadedModel(model=made, tokenizer=None, name="tiny", fingerprint=fingerprint(made), path=None, seconds=0.0)
    found = []
    for _ in range(2):
        with ModelRunner(model, ops=("linear",)) as runner:
            report = runner.autotune(
                group=group(),
                cache=directory / "cache.json",
                budget_s=20.0,
                wanted=requests([1], [2]),
                selection=Selection(runners=("torch",)),
            )
            assert report.plan is not None
            found.append(
                {
                    "winners": winners(report.outcome),
                    "plan": msgspec.json.encode(report.plan, order="sorted").decode(),
                    "verified": report.plan.verified,
                    "active": report.plan.active,
                    "serves": runner.scope.tuned,
                    "tuned": report.outcome.tuned,
                    "why": report.why,
                }
            )
    return {"starts": found, "said": said}


def run_page(rank: int, size: int, directory: Path, file: Path) -> dict[str, Any]:
    """The Python of a page of the documentation, as each rank of a job runs it."""
    prepare(directory)
    os.chdir(directory)
    names = runpy.run_path(str(file))
    return {**told(names["tuning"]), "ranks": names["ranks"]}
