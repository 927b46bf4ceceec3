"""Names: a FlashInfer tactic as a `Tactic`, and a profile of one of its ops as a `Problem`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tunebook.records import DEFAULT, Dim, Problem, Tactic

#: How the rule that maps a size to its bucket is named in a key: it is the op's own.
RULE = "flashinfer"
#: FlashInfer's word for the tactic that a runner takes untuned.
FALLBACK = -1
_HOLDS_TEXT = re.compile(r'["{]')
_AS_TUPLE, _AS_LIST = str.maketrans("[],", "() "), str.maketrans("() ", "[],")
_NO_NAME = re.compile(r"[^A-Za-z0-9_.:-]")


def runner_names(runners: Sequence[Any]) -> list[str]:
    """The runners' class names; a second one of the same class is ``Class:2``."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for runner in runners:
        name = _named(type(runner).__name__)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return names


def tactic_of(place: int, name: str, value: Any, to_json: Any) -> Tactic:
    """The tactic `value` of the runner `name`, which is the op's runner number `place`.

    What the op runs untuned, the fallback of its first runner, is the default. Plain numbers stand as they are, tuples of
    them as ``(128 (1 2) -1)``, anything else as JSON.
    """
    plain = to_json(value)
    if place == 0 and is_fallback(plain):
        return DEFAULT
    if not isinstance(plain, bool | int | float):
        plain = json.dumps(plain, separators=(",", ":"))
        plain = plain if _HOLDS_TEXT.search(plain) else plain.translate(_AS_TUPLE)
    return Tactic(runner=name, params=(("tactic", plain),))


def is_fallback(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == FALLBACK


def value_of(tactic: Tactic, from_json: Any) -> Any:
    """The value that FlashInfer takes. Raises ValueError for what is not written as `tactic_of` does."""
    if tactic == DEFAULT:
        return FALLBACK
    if [name for name, _ in tactic.params] != ["tactic"]:
        raise ValueError(f"{tactic} has not the one parameter tactic")
    value = tactic.kwargs["tactic"]
    if not isinstance(value, str):
        return value
    return from_json(json.loads(value if _HOLDS_TEXT.search(value) else value.translate(_AS_LIST)))


def problem_of(
    op: str, runners: Sequence[Any], config: Any, nearest: Any, inputs: Sequence[Any], extras: Sequence[tuple[Any, ...]]
) -> Problem:
    """``demo::gemm|shapes=*x64 64x32,first=CutlassRunner|bfloat16,bfloat16|x0.0=16@flashinfer``

    `nearest` are the shapes that FlashInfer's key has. A dynamic size is a dimension of the problem, named by the first
    input and axis that it stands at, and one that follows from others is ``*`` alone. The first runner is what the default
    is of; the others may change from start to start. `extras` is one tuple a runner.
    """
    marked = [[str(size) if size >= 0 else "*" for size in shape] for shape in nearest]
    dims = []
    for spec in config.dynamic_tensor_specs:
        first, axis = spec.input_idx[0], spec.dim_idx[0]
        dims.append(Dim(name=f"x{first}.{axis}", size=nearest[first][axis], rounding="exact", rule=RULE))
        for place, at in zip(spec.input_idx, spec.dim_idx, strict=True):
            marked[place][at] = "*"
    names = runner_names(runners)
    attrs = [("shapes", " ".join("x".join(shape) or "-" for shape in marked)), ("first", names[0])]
    if any(extras):
        same = len(set(map(str, extras))) == 1
        written = str(extras[0]) if same else " ".join(f"{n}{e}" for n, e in zip(names, extras, strict=True))
        attrs.append(("extras", written))
    name = _named(op)
    if name != op:
        attrs.append(("op", op))
    dtypes = tuple(str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else "-" for value in inputs)
    return Problem(op=name, attrs=tuple(attrs), dtypes=dtypes, dims=tuple(dims), policy=_policy(config))


def _policy(config: Any) -> str:
    """Under which conditions FlashInfer times the op: each combination is a problem of its own."""
    word = "eager"
    if config.use_cuda_graph:
        replays = getattr(config, "cuda_graph_profile_replays", 1)
        word = "captured" if replays == 1 else f"captured{replays}"
    return f"{word}.cold" if config.use_cold_l2_cache else word


def _named(text: str) -> str:
    """`text` as it can stand in a key."""
    cleaned = _NO_NAME.sub("_", text)
    return cleaned if cleaned[:1].isalpha() or cleaned[:1] == "_" else f"_{cleaned}"
