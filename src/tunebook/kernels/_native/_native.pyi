"""
CPU kernels of tunebook: linear layers and mixtures of experts on packed or row-major weights.
"""

import enum
from collections.abc import Callable, Sequence

from torch import Tensor

class Dtype(enum.Enum):
    bfloat16 = 0

    float32 = 1

class Activation(enum.Enum):
    silu = 0

    gelu = 1

    gelu_tanh = 2

    relu = 3

    relu6 = 4

    sigmoid = 5

    tanh = 6

    hardswish = 7

    mish = 8

class Tactic:
    @property
    def threads(self) -> int: ...

def tactic(
    *,
    isa: str,
    dot: bool = False,
    row_tile: int = 4,
    columns: int = 0,
    split: str = "columns",
    prefetch: int = 0,
    threads: int = 1,
    backend: str = "auto",
) -> Tactic: ...

class Weights:
    @property
    def count(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def packed(self) -> bool: ...
    @property
    def block(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def in_place(self) -> bool: ...
    def pack(self, parts: Sequence[tuple[int, int]], block: int, threads: int, backend: str = "auto") -> Weights: ...
    def unpack(self, parts: Sequence[tuple[int, int]], threads: int, backend: str = "auto") -> None: ...
    def outline(self, block: int) -> Weights: ...
    def in_place_refusal(self, block: int) -> str | None: ...
    def pack_in_place(self, block: int, threads: int, backend: str = "auto") -> None: ...
    def unpack_in_place(self, threads: int, backend: str = "auto") -> None: ...

def view(data: int, count: int, rows: int, inner: int, dtype: str, gated: bool) -> Weights: ...
def linear(
    weights: Weights, x: int, rows: int, bias: int, bias_dtype: Dtype, out: int, dtype: Dtype, tactic: Tactic
) -> None: ...
def experts(
    gate_up: Weights,
    down: Weights,
    x: int,
    tokens: int,
    index: int,
    choices: int,
    scores: int,
    scores_dtype: Dtype,
    activation: Activation,
    out: int,
    dtype: Dtype,
    tactic: Tactic,
) -> None: ...
def use_exchange(type: type, capsule: object) -> bool: ...
def bind_linear(
    weights: Weights, bias: int, bias_dtype: Dtype, owners: object, tactic: Tactic
) -> Callable[[Tensor], Tensor]: ...
def bind_experts(
    gate_up: Weights, down: Weights, owners: object, activation: Activation, tactic: Tactic
) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...
def linear_workspace(weights: Weights, rows: int, dtype: Dtype, tactic: Tactic) -> int: ...
def experts_workspace(
    gate_up: Weights, down: Weights, tokens: int, choices: int, dtype: Dtype, tactic: Tactic
) -> int: ...
def instruction_sets() -> list[str]: ...
def row_tiles(isa: str, panel: Dtype, weight: Dtype, dot: bool) -> int: ...
def processors() -> int: ...
def backend() -> str: ...
def release_workspace() -> int: ...
def read_bandwidth(weights: Weights, ahead: int, threads: int, backend: str = "auto") -> float: ...
def multiply_peak(isa: str, threads: int, backend: str = "auto") -> float: ...

class Rows:
    def bind_rms_norm(
        self, owner: object, weight: int, epsilon: float, inner: int, f32: bool, threads: int
    ) -> Callable[[Tensor], Tensor]: ...
    def bind_add_rms_norm(
        self, owner: object, weight: int, epsilon: float, multiplier: float, inner: int, f32: bool, threads: int
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]: ...
    def bind_residual_add(self, multiplier: float, threads: int) -> Callable[[Tensor, Tensor], Tensor]: ...
    def bind_router(
        self,
        owner: object,
        weight: int,
        experts: int,
        inner: int,
        choices: int,
        scoring: int,
        dot: bool,
        f32: bool,
        logits_f32: bool,
        scores_f32: bool,
        threads: int,
    ) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]: ...
    def rms_norm(
        self, x: int, weight: int, epsilon: float, rows: int, inner: int, out: int, f32: bool, threads: int
    ) -> None: ...
    def add_rms_norm(
        self,
        x: int,
        residual: int,
        multiplier: float,
        weight: int,
        epsilon: float,
        rows: int,
        inner: int,
        sum: int,
        normed: int,
        f32: bool,
        threads: int,
    ) -> None: ...
    def residual_add(
        self, x: int, residual: int, multiplier: float, rows: int, inner: int, sum: int, f32: bool, threads: int
    ) -> None: ...
    def router(
        self,
        x: int,
        weight: int,
        tokens: int,
        experts: int,
        inner: int,
        choices: int,
        scoring: int,
        dot: bool,
        f32: bool,
        logits: int,
        logits_f32: bool,
        scores: int,
        scores_f32: bool,
        index: int,
        threads: int,
    ) -> None: ...

def rows(isa: str) -> Rows: ...

class Mask(enum.Enum):
    none = 0

    allowed = 1

    bfloat16 = 2

    float32 = 3

class Heads:
    @property
    def dim(self) -> int: ...

def heads(
    *,
    query_heads: int,
    kv_heads: int,
    dim: int,
    query_norm: int = 0,
    query_eps: float = 0.0,
    key_norm: int = 0,
    key_eps: float = 0.0,
    whole: bool = False,
    clip: float = 0.0,
) -> Heads: ...
def qkv(
    weights: Weights,
    heads: Heads,
    x: int,
    batch: int,
    tokens: int,
    bias: int,
    bias_dtype: Dtype,
    packed: int,
    dtype: Dtype,
    cos: int,
    sin: int,
    positions_differ: bool,
    angle_dtype: Dtype,
    q: int,
    k: int,
    v: int,
    tactic: Tactic,
) -> None: ...
def bind_qkv(
    weights: Weights, heads: Heads, bias: int, bias_dtype: Dtype, owners: object, tactic: Tactic
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]: ...
def attend(
    q: int,
    k: int,
    v: int,
    batch: int,
    query_heads: int,
    kv_heads: int,
    dim: int,
    capacity: int,
    keys: int,
    scale: float,
    mask: int,
    mask_kind: Mask,
    masks_differ: bool,
    out: int,
    dtype: Dtype,
    tactic: Tactic,
) -> None: ...
def bind_attend(scale: float, tactic: Tactic) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]: ...
def append_tensors(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: int) -> None: ...
