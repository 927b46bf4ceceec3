"""What lies between the matrix products of a step: norms, residuals and routers, as ops with one native call each."""

from tunebook.kernels._rows._ops import add_rms_norm, residual_add, rms_norm
from tunebook.kernels._rows._router import SCORINGS, router

__all__ = ["SCORINGS", "add_rms_norm", "residual_add", "rms_norm", "router"]
