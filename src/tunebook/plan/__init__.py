"""The plan: layouts and tactics for a whole model under a memory limit, and the proof of what they buy."""

from tunebook.plan._layouts import Choices, Usable, choose_layouts
from tunebook.plan._make import FREE_SHARE, Knowledge, extra_bytes, install, make, prepare
from tunebook.plan._verify import Step, verify

__all__ = [
    "FREE_SHARE",
    "Choices",
    "Knowledge",
    "Step",
    "Usable",
    "choose_layouts",
    "extra_bytes",
    "install",
    "make",
    "prepare",
    "verify",
]
