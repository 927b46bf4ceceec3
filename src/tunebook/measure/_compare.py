"""How far one output is from another, within the tolerance of its dtype."""

from __future__ import annotations

from typing import Any

#: By dtype of the output: the greatest relative error of a row (2-norm), and of an element against its row's root mean square.
TOLERANCES: dict[str, tuple[float, float]] = {
    "torch.bfloat16": (2e-2, 1.2e-1),
    "torch.float16": (5e-3, 4e-2),
    "torch.float32": (1e-4, 2e-3),
    "torch.float64": (1e-9, 1e-7),
}


def compare(got: Any, expected: Any) -> float | str:
    """The greatest relative error of a row, or what is wrong in words. Tensors, or tuples and lists of them, or plain values."""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            return f"returned {_kind(got)}, not {len(expected)} values"
        worst = 0.0
        for position, (one, other) in enumerate(zip(got, expected, strict=True)):
            found = compare(one, other)
            if isinstance(found, str):
                return f"output {position}: {found}"
            worst = max(worst, found)
        return worst
    if not is_tensor(expected):
        return 0.0 if bool(got == expected) else f"returned {got!r}, not {expected!r}"
    if not is_tensor(got):
        return f"returned {_kind(got)}, not a tensor"
    if tuple(got.shape) != tuple(expected.shape):
        return f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype}, not {expected.dtype}"
    if expected.is_contiguous() and not got.is_contiguous():
        return (
            f"strides {tuple(got.stride())}, not {tuple(expected.stride())}: who views the output needs it contiguous"
        )
    if str(expected.dtype) not in TOLERANCES:
        return 0.0 if bool((got == expected).all()) else "values differ"
    return _compare_rows(got, expected)


def _compare_rows(got: Any, expected: Any) -> float | str:
    import torch

    if expected.numel() == 0:
        return 0.0
    row_limit, element_limit = TOLERANCES[str(expected.dtype)]
    columns = got.shape[-1] if got.ndim else 1
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    one, two = (value.detach().to(wide).reshape(-1, columns) for value in (got, expected))
    error = one - two  # of near values it is exact; sums over it are in double precision
    scale, off, peak = _size(two), _size(error), _peak(error)
    if not bool((scale.isfinite() & off.isfinite()).all()):
        odd, error, two = _only_finite(one.double(), two.double())
        if odd:
            return odd
        scale, off, peak = _size(two), _size(error), _peak(error)
    size = scale + (scale.max() * 1e-3 + 1e-30)  # a row that cancels to almost nothing is measured against the others
    relative = off / size
    worst, row = (float(relative.max()), int(relative.argmax()))
    if worst > row_limit:
        return f"row {row} is off by {worst:.2g} of its size (limit {row_limit:g})"
    if peak > element_limit * float(size.min()):  # else no element can be off by more
        peak = float((error.double().abs_() / two.double().abs().add_(size[:, None])).max())
        if peak > element_limit:
            return f"an element is off by {peak:.2g} of its row's size (limit {element_limit:g})"
    return worst


def _size(rows: Any) -> Any:
    """The root mean square of each row."""
    import torch

    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) / max(rows.shape[1], 1) ** 0.5


def _peak(rows: Any) -> float:
    import torch

    return float(torch.linalg.vector_norm(rows, float("inf")))


def _only_finite(one: Any, two: Any) -> tuple[str, Any, Any]:
    """What is odd about one's NaN and infinities beside two's, in words; the error, and two, with 0 in all such places."""
    import torch

    both = torch.isfinite(one) & torch.isfinite(two)
    odd = ~both & ~((one == two) | (torch.isnan(one) & torch.isnan(two)))
    why = ""
    if bool(odd.any()):
        row = int(odd.any(dim=1).nonzero()[0])
        why = f"{int(odd.sum())} values are NaN or infinite where the default's are not, first in row {row}"
    return why, torch.where(both, one - two, 0.0), torch.where(both, two, 0.0)


def is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
