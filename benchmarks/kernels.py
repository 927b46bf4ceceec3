"""One layer of each shape on the native kernels, against what the machine can do and against PyTorch's and oneDNN's kernels.

For every number of tokens the native tactics of `space` are screened, and the best few then race, interleaved round by round
in shuffled order, with the peers and with the machine's own limits: the speed of reading memory and the peak of the fastest
bf16 multiplication. Layers take turns, so that no cache keeps a layer's weights between two calls of one contestant.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _allocator  # noqa: F401 - sets how torch allocates
import torch
import torch.nn.functional as F
from _common import Result, finish, options
from torch import Tensor

from tunebook.devices import device_of
from tunebook.kernels import _native as native
from tunebook.kernels._native._rules import ONE_THREAD_BYTES, Point
from tunebook.kernels._native._serve import tactic_of
from tunebook.stats import median_interval, ratio_interval

Call = Callable[[int], object]
#: What the weights of one contestant take at least, in bytes: more than the caches hold.
COLD_BYTES = 600e6
READ_BYTES = 256 << 20
#: Native tactics that race, the times of each before any is left out, and the layers that a round calls.
FINALISTS = 3
LEAST_TIMES = 3
MOST_LAYERS = 12
GOALS = {
    "bandwidth_share_1": (">=", 0.85),
    "bandwidth_share_4": (">=", 0.85),
    "bandwidth_share_16": (">=", 0.85),
    "peak_share_512": (">=", 0.80),
    "linear_bandwidth_share_1": (">=", 0.80),
    "slower_than_peer_max": ("<=", 1.03),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A shape to measure: `goal` where its figures are the ones that goals are set for."""

    op: str
    sizes: tuple[int, ...]
    goal: bool

    @property
    def name(self) -> str:
        letters = ("H", "I", "E", "top ") if self.op == "experts" else ("N", "K")
        return f"{self.op} " + " ".join(f"{letter}{size}" for letter, size in zip(letters, self.sizes, strict=True))


LAYERS = (
    Layer(op="experts", sizes=(1024, 512, 32, 8), goal=True),
    Layer(op="experts", sizes=(1024, 768, 64, 8), goal=False),
    Layer(op="linear", sizes=(4096, 1024), goal=True),
    Layer(op="linear", sizes=(1024, 1024), goal=False),
)
QUICK = (
    Layer(op="experts", sizes=(128, 64, 8, 2), goal=True),
    Layer(op="linear", sizes=(256, 128), goal=True),
)


@dataclass(slots=True)
class Work:
    """The contestants of one shape and number of tokens: each a call on layer `i`; bytes and operations of one call."""

    peers: dict[str, Call]
    native: dict[str, Call]
    moved: float
    operations: float
    layers: int


def bf16(*shape: int) -> Tensor:
    return (torch.randn(*shape) * 0.03).bfloat16()


def packed_by_block(weights: list[Tensor], gated: bool, threads: int) -> dict[int, list[native.Weights]]:
    made = {b: [native.pack(w, block=b, gated=gated, threads=threads) for w in weights] for b in (16, 32, 64)}
    return {0: [native.view(w, gated=gated) for w in weights], **made}


def label(point: Point) -> str:
    layout = f"b{point['block']}" if "block" in point else "dot" if point["dot"] else "rows"
    ends = f" p{point['prefetch']}" if "block" in point else ""
    return f"{point['isa']} {layout} r{point['row_tile']} {point['split']}{ends}" + (
        " 1 thread" if point["threads"] else ""
    )


def block_of(point: Point) -> int:
    return int(point.get("block", 0))


def grouped_mm(gate_up: Tensor, down: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Transformers' experts on torch's grouped product."""
    from transformers.integrations import moe

    module = types.SimpleNamespace(
        num_experts=len(down), has_gate=True, has_bias=False, is_transposed=False, gate_up_proj=gate_up, down_proj=down,
        _is_expert_parallel=False, act_fn=F.silu, has_post_expert_norm=False,
    )  # fmt: skip
    module._apply_gate = types.MethodType(moe._default_apply_gate, module)
    return lambda x, index, scores: moe.grouped_mm_experts_forward(module, x, index, scores)


class Experts:
    """Layers of one mixture of experts, their weights packed in each way."""

    def __init__(self, sizes: tuple[int, ...], threads: int, cold: float) -> None:
        self.hidden, self.inner, self.experts, self.choices = sizes
        self.threads = threads
        self.layers = max(2, round(cold / (self.experts * 6 * self.hidden * self.inner)))
        gate_up = [bf16(self.experts, 2 * self.inner, self.hidden) for _ in range(self.layers)]
        down = [bf16(self.experts, self.hidden, self.inner) for _ in range(self.layers)]
        self.grouped = [grouped_mm(*pair) for pair in zip(gate_up, down, strict=True)]
        self.gate_up, self.down = packed_by_block(gate_up, True, threads), packed_by_block(down, False, threads)

    def work(self, tokens: int) -> Work:
        x = bf16(self.layers, tokens, self.hidden)
        routes = [torch.rand(tokens, self.experts).topk(self.choices) for _ in range(self.layers)]
        index = [route.indices for route in routes]
        scores = [(route.values / route.values.sum(-1, keepdim=True)).bfloat16() for route in routes]
        active = statistics.mean(len(i.unique()) for i in index)
        size = self.hidden * self.inner
        rows = max(1, round(tokens * self.choices / active))
        choices = native.offered("experts", rows, "bf16", "bf16", small=False, many=self.threads > 1)

        def ours(point: Point) -> Call:
            layers = zip(self.gate_up[block_of(point)], self.down[block_of(point)], strict=True)
            bound = [native.bind_experts(up, down, "silu", tactic_of(**point)) for up, down in layers]
            return lambda i: bound[i](x[i], index[i], scores[i])

        peers: dict[str, Call] = {"grouped_mm": lambda i: self.grouped[i](x[i], index[i], scores[i])}
        made = {label(choice): ours(choice) for choice in choices}
        operations = 6.0 * tokens * self.choices * size
        return Work(peers=peers, native=made, moved=active * 6 * size, operations=operations, layers=self.layers)


class Linear:
    """Layers of one linear shape, their weights packed in each way."""

    def __init__(self, sizes: tuple[int, ...], threads: int, cold: float) -> None:
        self.columns, self.inner = sizes
        self.threads = threads
        self.layers = max(2, round(cold / (2 * self.columns * self.inner)))
        self.weights = [bf16(self.columns, self.inner) for _ in range(self.layers)]
        self.packed = packed_by_block(self.weights, False, threads)

    def work(self, tokens: int) -> Work:
        x = bf16(self.layers, tokens, self.inner)
        mkldnn = torch.ops.mkldnn
        reordered = [mkldnn._reorder_linear_weight(w, tokens) for w in self.weights]
        small = 2 * self.columns * self.inner <= ONE_THREAD_BYTES
        choices = native.offered("linear", tokens, "bf16", "bf16", small=small, many=self.threads > 1)

        def ours(point: Point) -> Call:
            bound = [native.bind_linear(weight, None, tactic_of(**point)) for weight in self.packed[block_of(point)]]
            return lambda i: bound[i](x[i])

        peers: dict[str, Call] = {
            "torch": lambda i: F.linear(x[i], self.weights[i]),
            "onednn": lambda i: mkldnn._linear_pointwise(x[i], reordered[i], None, "none", [], ""),
        }
        made = {label(choice): ours(choice) for choice in choices}
        size = float(self.columns * self.inner)
        return Work(peers=peers, native=made, moved=2 * size, operations=2 * tokens * size, layers=self.layers)


def timed(call: Call, layer: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call(layer)
    return time.perf_counter() - start


def screened(work: Work, seconds: float) -> dict[str, Call]:
    """The fastest few native tactics, after halving the field in rounds that share the given time."""
    left = dict(work.native)
    times: dict[str, list[float]] = {name: [] for name in left}
    end = time.perf_counter() + seconds
    while len(left) > FINALISTS and (time.perf_counter() < end or not min(map(len, times.values()))):
        for name in random.sample(list(left), len(left)):
            at = random.randrange(work.layers)
            if not times[name]:
                left[name](at)  # the first call makes the memory for intermediate values
            times[name].append(timed(left[name], at))
        if min(len(times[name]) for name in left) >= LEAST_TIMES:
            ranked = sorted(left, key=lambda name: statistics.median(times[name]))
            left = {name: left[name] for name in ranked[: max(FINALISTS, len(ranked) * 2 // 3)]}
    ranked = sorted(left, key=lambda name: statistics.median(times[name]))
    return {name: left[name] for name in ranked[:FINALISTS]}


class Limits:
    """What the machine does at most with so many threads, by the kernels' own instructions."""

    def __init__(self, threads: int, read_bytes: int) -> None:
        self.threads = threads
        self.fresh = [native.pack(torch.ones(read_bytes // 2048, 1024).bfloat16(), block=64) for _ in range(2)]

    def bandwidth(self) -> float:
        """Bytes a second of reading memory that the contestants have driven out of the caches, by the better of two
        distances of prefetching."""
        return max(
            native.read_bandwidth(self.fresh[n], ahead=ahead, threads=self.threads)
            for n, ahead in enumerate((1024, 3072))
        )

    def peak(self) -> float:
        return native.multiply_peak(native.instruction_sets()[0], threads=self.threads)


def race(work: Work, finalists: dict[str, Call], limits: Limits, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call by contestant and round; "read" and "peak" in bytes and operations a second."""
    contestants = {**{f"={name}": call for name, call in work.peers.items()}, **finalists}
    found: dict[str, list[float]] = {name: [] for name in (*contestants, "read", "peak")}
    for number in range(rounds + 1):
        measured: dict[str, float] = {"read": limits.bandwidth(), "peak": limits.peak()}
        turns = random.sample(range(work.layers), min(work.layers, MOST_LAYERS))
        for name in random.sample(list(contestants), len(contestants)):
            measured[name] = statistics.median(timed(contestants[name], i) for i in turns)
        if number:  # the first round warms up
            for name, value in measured.items():
                found[name].append(value)
    return found


def report(result: Result, layer: Layer, tokens: int, work: Work, found: dict[str, list[float]]) -> float:
    """One row of the table and its figures; returns how much slower than the best peer ours is, at least, by its interval."""
    peer = min((f"={name}" for name in work.peers), key=lambda name: statistics.median(found[name]))
    ours = min((name for name in found if name in work.native), key=lambda name: statistics.median(found[name]))
    seconds = median_interval(found[ours])
    bandwidth = ratio_interval([work.moved / bytes_s for bytes_s in found["read"]], found[ours])
    peak = ratio_interval([work.operations / flops for flops in found["peak"]], found[ours])
    slower = ratio_interval(found[ours], found[peer])
    result.rows.append(
        (
            layer.name,
            str(tokens),
            f"{seconds.value * 1e3:.3f} [{seconds.low * 1e3:.3f}, {seconds.high * 1e3:.3f}]",
            f"{work.moved / seconds.value / 1e9:.1f}",
            f"{bandwidth.value:.0%} [{bandwidth.low:.0%}, {bandwidth.high:.0%}]",
            f"{work.operations / seconds.value / 1e9:.0f}",
            f"{peak.value:.1%}",
            f"{1 / slower.value:.2f}x [{1 / slower.high:.2f}, {1 / slower.low:.2f}] over {peer[1:]}",
            ours,
        )
    )
    if layer.goal:
        prefix = "" if layer.op == "experts" else "linear_"
        result.figures[f"{prefix}bandwidth_share_{tokens}"] = bandwidth.value
        result.figures[f"{prefix}peak_share_{tokens}"] = peak.value
        # What the weights' way from memory and the multiplications leave, were both at the machine's limit and one hidden.
        floor = max(work.moved / statistics.median(found["read"]), work.operations / statistics.median(found["peak"]))
        result.figures[f"{prefix}floor_share_{tokens}"] = floor / seconds.value
    return slower.low


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", default="1,4,16,64,512")
    parser.add_argument(
        "--screen", type=float, default=4.0, help="seconds of screening for one shape and number of tokens"
    )
    args = parser.parse_args()
    reason = native.unavailable()
    if reason is not None:
        sys.exit(f"the native kernels cannot be used: {reason}")
    threads = args.threads or native.processors()
    torch.set_num_threads(threads)
    cold, read_bytes, layers = COLD_BYTES, READ_BYTES, list(LAYERS)
    if args.quick:
        args.rounds, args.screen, args.tokens, layers = 6, 0.05, "1,4,16,512", list(QUICK)
        cold, read_bytes = 4e6, 8 << 20
    result = Result(
        "Native kernels: one layer, bf16, cold weights",
        ("layer", "tokens", "ms", "GB/s", "share of read", "GFLOP/s", "share of peak", "speed-up", "tactic"),
    )
    limits = Limits(threads, read_bytes)
    slower = []
    with torch.inference_mode():
        for layer in layers:
            made = (Experts if layer.op == "experts" else Linear)(layer.sizes, threads, cold)
            for tokens in (int(part) for part in args.tokens.split(",")):
                work = made.work(tokens)
                found = race(work, screened(work, args.screen), limits, args.rounds)
                slower.append(report(result, layer, tokens, work, found))
            del made
    result.figures["slower_than_peer_max"] = max(slower)
    result.goals = {} if args.quick else {name: goal for name, goal in GOALS.items() if name in result.figures}
    environment = device_of("cpu").environment()
    finish(result, args, {**environment.hard, **environment.soft, "threads": str(threads)})


if __name__ == "__main__":
    main()
