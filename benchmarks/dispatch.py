"""What a tuned call costs over calling the winning function directly, beside FlashInfer's cached AutoTuner.choose_one.

Everything is timed in one process, in batches of many calls, in random order round after round. An overhead is the
difference between a batch of tuned calls and a batch of the same calls made directly, in the same round.
"""

from __future__ import annotations

import random
import sys
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _common import Result, finish, options
from _dispatch_flashinfer import VERSION, Peer, cached, missing, version
from _dispatch_ours import Call, Entries, floor, returned, variants, with_entries

from tunebook.devices import device_of
from tunebook.stats import Interval, median_interval, ratio_interval

GOALS = {"overhead_us": ("<=", 0.5), "ratio_flashinfer": (">=", 15.0), "growth_10000": ("<=", 1.2)}
#: The variants' figures, in the order of `_dispatch_ours.variants`.
FIGURES = (
    "overhead_us",
    "overhead_number_us",
    "overhead_two_tensors_us",
    "overhead_binding_us",
    "overhead_attached_us",
    "overhead_two_tensors_real_us",
    "overhead_attached_real_us",
)


@dataclass(frozen=True)
class Batch:
    """`calls` calls in a loop; `statement` uses the names of `names`."""

    statement: str
    names: Mapping[str, Any]
    calls: int

    def seconds(self) -> float:
        """Of one batch, the garbage collector off."""
        return timeit.Timer(self.statement, globals=dict(self.names)).timeit(self.calls)


@dataclass(frozen=True)
class Pair:
    """Two batches whose difference is a cost."""

    name: str
    tuned: Batch
    direct: Batch


def call_batch(call: Call, args: tuple[Any, ...], calls: int) -> Batch:
    names = {f"a{position}": value for position, value in enumerate(args)}
    return Batch(f"f({', '.join(names)})", {"f": call, **names}, calls)


def turn_batch(call: Call, tensors: Sequence[Any], calls: int) -> Batch:
    """Calls with one tensor after another; `calls` of them, whole turns."""
    return Batch("for x in xs: f(x)", {"f": call, "xs": list(tensors)}, max(1, calls // len(tensors)))


def measure(pairs: Sequence[Pair], rounds: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Microseconds a call by pair, a value a round; after one round of warm-up."""
    rng = random.Random(0)
    costs: dict[str, list[float]] = {pair.name: [] for pair in pairs}
    for number in range(rounds + 1):
        batches = [(pair.name, which) for pair in pairs for which in ("tuned", "direct")]
        rng.shuffle(batches)
        by_name = {pair.name: pair for pair in pairs}
        taken = {(name, which): getattr(by_name[name], which).seconds() for name, which in batches}
        for pair in pairs if number else ():
            difference = taken[pair.name, "tuned"] - taken[pair.name, "direct"]
            turn = len(pair.tuned.names.get("xs", (None,)))
            costs[pair.name].append(difference / (pair.tuned.calls * turn) * 1e6)
    return {name: np.array(values) for name, values in costs.items()}


def our_pairs(calls: int, entries: Sequence[Entries]) -> dict[str, Pair]:
    """By figure: every variant, the bare closure, and the growth with the number of entries."""
    pairs: dict[str, Pair] = {}
    for figure, variant in zip(FIGURES, variants(), strict=True):
        tuned, direct = (call_batch(call, variant.args, calls) for call in (variant.tuned, variant.direct))
        pairs[figure] = Pair(variant.name, tuned, direct)
    x = torch.ones(16, 64)
    bare = "a bare closure with a dictionary"
    pairs["floor_us"] = Pair(bare, call_batch(floor(x), (x,), calls), call_batch(returned, (x,), calls))
    for held in entries:
        name = f"op of one tensor, {held.count} entries"
        pairs[f"entries_{held.count}_us"] = Pair(
            name, call_batch(held.op, (held.one,), calls), call_batch(returned, (held.one,), calls)
        )
        pairs[f"entries_{held.count}_in_turn_us"] = Pair(
            f"{name}, each in turn", turn_batch(held.op, held.tensors, calls), turn_batch(returned, held.tensors, calls)
        )
    return pairs


def peer_pairs(calls: int, entries: Sequence[Entries]) -> dict[str, Pair]:
    """FlashInfer's look-up alone, less an empty loop: what it costs before the runner is called."""
    nothing = Batch("pass", {}, calls)
    pairs = {}
    for held in entries:
        peer: Peer = cached(held.tensors, held.one)
        name = f"FlashInfer {version()}, choose_one, {held.count} entries"
        pairs[f"flashinfer_{held.count}_us"] = Pair(name, call_batch(peer.choose, peer.args, calls), nothing)
    return pairs


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=10_000, help="calls in a batch")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 6, 1000
    torch.set_num_threads(args.threads or 1)  # the tensors are small, and what is measured is Python
    why_not = missing()
    if why_not:
        print(why_not, file=sys.stderr)
    with torch.inference_mode():
        entries = [with_entries(count) for count in (1, 100, 10_000)]
        pairs = our_pairs(args.calls, entries)
        if not why_not:
            pairs |= peer_pairs(args.calls, entries[:2] if args.quick else entries)
        costs = measure(list(pairs.values()), args.rounds)
    by_figure = {figure: costs[pair.name] for figure, pair in pairs.items()}
    result = report(pairs, by_figure, peer=not why_not)
    result.notes.append(f"{args.rounds} rounds of batches of {args.calls} calls, in random order, under inference_mode")
    if why_not:
        result.notes.append("FlashInfer was not installed: no ratio")
    elif not version().startswith(VERSION):
        result.notes.append(f"FlashInfer here is {version()}, the goal is about {VERSION}")
    environment = device_of("cpu").environment()
    finish(result, args, {**environment.hard, **environment.soft})


def report(pairs: Mapping[str, Pair], costs: Mapping[str, Any], *, peer: bool) -> Result:
    """The table, a row a pair; the figures with their intervals."""
    result = Result("Dispatch: what a tuned call costs over the winner called directly", ("call", "µs [95 %]"))
    for figure, pair in pairs.items():
        interval = median_interval(costs[figure])
        _figure(result, figure, interval)
        result.rows.append((pair.name, f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"))
    ratios = {
        "growth_100": ("entries_100_us", "entries_1_us"),
        "growth_10000": ("entries_10000_us", "entries_1_us"),
        "growth_10000_in_turn": ("entries_10000_in_turn_us", "entries_1_in_turn_us"),
        "ratio_floor": ("overhead_us", "floor_us"),
    }
    if peer:
        ratios["ratio_flashinfer"] = ("flashinfer_1_us", "overhead_us")
        if "flashinfer_10000_us" in costs:
            ratios["growth_10000_flashinfer"] = ("flashinfer_10000_us", "flashinfer_1_us")
    for name, (one, other) in ratios.items():
        interval = ratio_of(costs[one], costs[other])
        _figure(result, name, interval)
        result.rows.append((name, f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"))
    result.goals = {name: goal for name, goal in GOALS.items() if name in result.figures}
    result.notes += [
        "FlashInfer's figure is `choose_one` alone, with its arguments made beforehand; calling the runner comes on top",
        (
            "entries: tactics in the scope with as many shapes resolved; one tensor all the time, or each of them in turn, where "
            "the caches of the processor hold no longer what each look-up needs"
        ),
        "the attached linear is a call of the module; the winner is called from a bare module",
    ]
    return result


def ratio_of(one: Any, other: Any) -> Interval:
    """The median paired ratio of two costs; a cost that noise made negative in a round counts as a nanosecond."""
    return ratio_interval(np.maximum(one, 1e-3), np.maximum(other, 1e-3))


def _figure(result: Result, name: str, interval: Interval) -> None:
    result.figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


if __name__ == "__main__":
    main()
