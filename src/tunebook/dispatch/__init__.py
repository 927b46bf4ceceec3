"""Dispatch: from a call to the tactic that serves it, by one look-up; and the switch that lets calls be collected."""

from tunebook.dispatch._binding import Binding
from tunebook.dispatch._caller import place
from tunebook.dispatch._calls import versions
from tunebook.dispatch._collecting import BINDINGS, Collector, collecting, collector, uncollected
from tunebook.dispatch._counting import COUNTING
from tunebook.dispatch._op import OPS, Op, op
from tunebook.dispatch._originals import is_released, releasable_bytes, tensors_of
from tunebook.dispatch._prepared import Prepared, tensor_bytes
from tunebook.dispatch._scope import FREE, Scope, snapshot

__all__ = [
    "BINDINGS",
    "COUNTING",
    "FREE",
    "OPS",
    "Binding",
    "Collector",
    "Op",
    "Prepared",
    "Scope",
    "collecting",
    "collector",
    "is_released",
    "op",
    "place",
    "releasable_bytes",
    "snapshot",
    "tensor_bytes",
    "tensors_of",
    "uncollected",
    "versions",
]
