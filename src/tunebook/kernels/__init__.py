"""The ops that ship, with their runners. A runner of your own: ``@tb.kernels.experts.runner("mine", space={…})``."""

from tunebook.kernels._attention import append, attend, qkv
from tunebook.kernels._attention._declare import declare as declare_attention
from tunebook.kernels._examples import declare as declare_examples
from tunebook.kernels._experts import ACTIVATIONS
from tunebook.kernels._ops import experts, linear
from tunebook.kernels._rows import SCORINGS, add_rms_norm, residual_add, rms_norm, router
from tunebook.kernels._rows._declare import declare as declare_rows
from tunebook.kernels._runners import declare

declare()
declare_rows()
declare_attention()
declare_examples()

__all__ = [
    "ACTIVATIONS",
    "SCORINGS",
    "add_rms_norm",
    "append",
    "attend",
    "experts",
    "linear",
    "qkv",
    "residual_add",
    "rms_norm",
    "router",
]
