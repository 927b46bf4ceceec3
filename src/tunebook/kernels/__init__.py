"""The ops that ship, with their runners. A runner of your own: ``@tb.kernels.experts.runner("mine", space={…})``."""

from tunebook.kernels._experts import ACTIVATIONS
from tunebook.kernels._ops import experts, linear
from tunebook.kernels._runners import declare

declare()

__all__ = ["ACTIVATIONS", "experts", "linear"]
