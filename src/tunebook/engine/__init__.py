"""The engine: load, attach, tune through dummy runs, verify on the whole model, generate."""

from tunebook.engine._attach import ATTACHABLE, Attachment, attach
from tunebook.engine._autotune import autotune
from tunebook.engine._mix import parse_mix
from tunebook.engine._phases import DEFAULT_DECODE, DEFAULT_PREFILL, PhaseRequest, requests
from tunebook.engine._reload import Reloaded
from tunebook.engine._report import TuneReport
from tunebook.engine._runner import ModelRunner
from tunebook.engine._steps import make_step
from tunebook.engine._threads import set_threads

__all__ = [
    "ATTACHABLE",
    "DEFAULT_DECODE",
    "DEFAULT_PREFILL",
    "Attachment",
    "ModelRunner",
    "PhaseRequest",
    "Reloaded",
    "TuneReport",
    "attach",
    "autotune",
    "make_step",
    "parse_mix",
    "requests",
    "set_threads",
]
