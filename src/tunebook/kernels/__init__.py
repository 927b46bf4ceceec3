"""The ops that ship, with their runners. A runner of your own: ``@tb.kernels.experts.runner("mine", space={…})``."""

from tunebook.kernels._runners import declare

declare()

from tunebook.kernels._ops import experts, linear

__all__ = ["experts", "linear"]
