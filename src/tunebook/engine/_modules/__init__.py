"""The kinds of modules that can be attached, one file each, in the order in which a module is looked at."""

from tunebook.engine._modules._experts import EXPERTS
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._linear import LINEAR

KINDS: tuple[Kind, ...] = (EXPERTS, LINEAR)

__all__ = ["KINDS", "Kind"]
