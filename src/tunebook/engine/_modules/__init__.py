"""The kinds of modules that can be attached, one file each, in the order in which a module is looked at."""

from tunebook.engine._modules._attention import ATTENTION
from tunebook.engine._modules._decoder_layer import DECODER_LAYER
from tunebook.engine._modules._experts import EXPERTS
from tunebook.engine._modules._forward import TracedForward
from tunebook.engine._modules._kind import Kind
from tunebook.engine._modules._linear import LINEAR
from tunebook.engine._modules._rms_norm import RMS_NORM
from tunebook.engine._modules._router import ROUTER

KINDS: tuple[Kind, ...] = (DECODER_LAYER, ATTENTION, ROUTER, RMS_NORM, EXPERTS, LINEAR)

__all__ = ["KINDS", "Kind", "TracedForward"]
