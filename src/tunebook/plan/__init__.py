"""The plan: layouts and tactics for a whole model under a memory limit, the proof of what they buy, and its repair."""

from tunebook.plan._effects import EFFECT_ROUNDS, measure_effects
from tunebook.plan._layouts import Choices, Usable, choose_layouts
from tunebook.plan._make import FREE_SHARE, Knowledge, expected, extra_bytes, install, make, prepare, without
from tunebook.plan._repair import Repaired, loses, repair, seconds_a_round
from tunebook.plan._serving import Serving
from tunebook.plan._verify import OVERDRAFT, Proof, Step, verify

__all__ = [
    "EFFECT_ROUNDS",
    "FREE_SHARE",
    "OVERDRAFT",
    "Choices",
    "Knowledge",
    "Proof",
    "Repaired",
    "Serving",
    "Step",
    "Usable",
    "choose_layouts",
    "expected",
    "extra_bytes",
    "install",
    "loses",
    "make",
    "measure_effects",
    "prepare",
    "repair",
    "seconds_a_round",
    "verify",
    "without",
]
