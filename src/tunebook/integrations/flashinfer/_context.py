"""`autotune`: what stands in the place of ``flashinfer.autotune``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunebook.integrations.flashinfer._session import Session
from tunebook.store import Policy


@contextmanager
def autotune(
    tune_mode: bool = True,
    cache: str | Path | None = None,
    tuning_buckets: Sequence[int] | None = None,
    round_up: bool | None = None,
    skip_ops: str | Collection[str] | None = None,
    cuda_graph_profile_replays: int | None = None,
    *,
    policy: Policy | str | None = None,
    budget_s: float | None = None,
    flashinfer_cache: str | Path | None = None,
    unchecked_ops: Collection[str] = (),
    thorough: bool = False,
    seed: int | None = None,
    device: str | None = None,
) -> Iterator[Session]:
    """Collect FlashInfer's ``choose_one`` problems in the block, tune them on leaving it, and let FlashInfer serve the winners.

    tune_mode:  False never tunes: what tunebook's cache knows serves, in the block already, the rest runs FlashInfer's
                fallback (REPLAY).
    cache:      tunebook's cache, not a file of FlashInfer's; by default ``winners.json`` of this environment under
                TUNEBOOK_CACHE_DIR.
    tuning_buckets, round_up, skip_ops, cuda_graph_profile_replays: as of ``flashinfer.autotune``; the last one with 0.7 only.
    policy:     a `Policy` or its name; an argument beats the environment variables, these beat the default (REUSE).
    budget_s:   seconds of wall clock for the tuning; by default TUNEBOOK_BUDGET_S.
    flashinfer_cache: a FlashInfer v1 file into which the winners go as well; SGLang and vLLM load it. With FRESH a new file in
                ``runs/`` beside it, and it is left alone; with REPLAY none.
    unchecked_ops: ops whose outputs are not compared with those of their default.
    thorough:   longer races, until choosing is expected to cost no more than 0.1 %.
    seed:       of the order in which tactics are sampled.
    device:     what is measured, as torch calls it; by default the current CUDA device, else the CPU.

    An exception in the block tunes nothing. Ctrl-C while it tunes keeps what was reached. Gives the `Session`, of which
    `outcome` tells what was done and `run` names the run file.

    Where ``flashinfer.autotuner.set_autotune_process_group`` has set a group, all of its ranks enter the block, each problem is
    tuned by one of them, and all serve the same tactics.

    Raises UsageError where FlashInfer is missing or of a version that is not known, for ``tune_mode=False`` with another
    policy, for an argument that the installed FlashInfer has not, and, on every rank of a group, where they were started with
    what contradicts each other. Raises RankError where a rank of the group is lost, or fails.
    """
    session = Session(
        tune_mode,
        cache,
        policy=policy,
        budget_s=budget_s,
        flashinfer_cache=flashinfer_cache,
        unchecked_ops=unchecked_ops,
        thorough=thorough,
        seed=seed,
        device=device,
    )
    try:
        with session.autotune(
            tuning_buckets=None if tuning_buckets is None else tuple(tuning_buckets),
            round_up=round_up,
            skip_ops=skip_ops if skip_ops is None or isinstance(skip_ops, str) else set(skip_ops),
            cuda_graph_profile_replays=cuda_graph_profile_replays,
        ):
            yield session
    finally:
        session.close()
