"""Memory that lay idle is slow at its first touch: a race must not take that for the tactic's time."""

from __future__ import annotations

from typing import Any

import torch

import tunebook as tb
from tunebook.dispatch import collecting
from tunebook.records import Timed
from tunebook.store import resolve_policy
from tunebook.tuner import Collection, Session

LAYERS = 4


def test_the_first_touch_of_each_layers_weights_is_in_no_sample(lab: Any) -> None:
    touched: set[int] = set()

    @tb.op("o", buckets={"x": {0: tb.pow2(name="M")}}, constants=("w",))
    def op(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        lab.machine.work(4e-3)
        return x * 2

    @op.runner("packed", version="1", prepare=lambda w: w.clone())
    def packed(x: torch.Tensor, prepared: torch.Tensor) -> torch.Tensor:
        first = id(prepared) not in touched
        touched.add(id(prepared))
        lab.machine.work(2e-3 * (50 if first else 1))
        return x * 2

    collection = Collection(lab.machine)
    weights = [torch.zeros(8) for _ in range(LAYERS)]
    with collecting(collection), torch.inference_mode():
        for weight in weights:
            op(torch.ones(1, 3), weight)
    session = Session(resolve_policy(), cache=str(lab.cache), device=lab.machine, seed=0)
    verdict = session.tune(collection, None).verdicts["o|x.1=3,w.0=8|fp32|M≤1"]
    lab.session = session
    samples = [
        sample
        for line in lab.run().trials
        if isinstance(line.trial, Timed) and line.trial.tactic == "packed"
        for sample in line.trial.samples
    ]
    assert len(touched) == LAYERS
    assert samples
    assert max(samples) < 4e-3
    assert verdict.winner == "packed"
    assert verdict.speedup > 1.9
