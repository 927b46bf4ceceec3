"""Search: which tactics of a large space to try, and which of those are worth a race. It knows names and figures, not ops."""

from tunebook.search._halving import FINALISTS, MAX_CALLS, Halved, calls_needed, halving
from tunebook.search._space_filling import space_filling

__all__ = ["FINALISTS", "MAX_CALLS", "Halved", "calls_needed", "halving", "space_filling"]
