"""tunebook: an autotuner for LLM-inference kernels whose results can be trusted, seen and kept.

    import tunebook as tb

    with tb.attach(model):
        with tb.autotune():
            model(**batch)

Names load on first use: ``import tunebook`` alone imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunebook._version import __version__

if TYPE_CHECKING:
    from tunebook import kernels
    from tunebook.book import open_cache, open_run
    from tunebook.book.coverage import coverage
    from tunebook.dispatch import Op, op
    from tunebook.engine import Attachment, ModelRunner, attach, autotune
    from tunebook.errors import TunebookError
    from tunebook.integrations import flashinfer, sglang, triton, vllm
    from tunebook.ops import Bucket, Description, buckets, exact, multiple, pow2, requires
    from tunebook.store import Policy

_HOMES = {
    "Attachment": "tunebook.engine",
    "Bucket": "tunebook.ops",
    "Description": "tunebook.ops",
    "ModelRunner": "tunebook.engine",
    "Op": "tunebook.dispatch",
    "Policy": "tunebook.store",
    "TunebookError": "tunebook.errors",
    "attach": "tunebook.engine",
    "autotune": "tunebook.engine",
    "buckets": "tunebook.ops",
    "coverage": "tunebook.book.coverage",
    "exact": "tunebook.ops",
    "flashinfer": "tunebook.integrations.flashinfer",
    "kernels": "tunebook.kernels",
    "multiple": "tunebook.ops",
    "open_cache": "tunebook.book",
    "open_run": "tunebook.book",
    "op": "tunebook.dispatch",
    "pow2": "tunebook.ops",
    "requires": "tunebook.ops",
    "sglang": "tunebook.integrations.sglang",
    "triton": "tunebook.integrations.triton",
    "vllm": "tunebook.integrations.vllm",
}

__all__ = [
    "Attachment",
    "Bucket",
    "Description",
    "ModelRunner",
    "Op",
    "Policy",
    "TunebookError",
    "__version__",
    "attach",
    "autotune",
    "buckets",
    "coverage",
    "exact",
    "flashinfer",
    "kernels",
    "multiple",
    "op",
    "open_cache",
    "open_run",
    "pow2",
    "requires",
    "sglang",
    "triton",
    "vllm",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tunebook' has no attribute {name!r}")
    module = import_module(home)
    value = module if home.endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
