"""The plan: layouts and tactics for a whole model under a memory limit, the proof of what they buy, and its repair."""

from tunebook.plan._effects import EFFECT_ROUNDS, measure_effects
from tunebook.plan._families import Usable, Weights
from tunebook.plan._install import install, prepare, release
from tunebook.plan._layouts import Choices, choose_layouts
from tunebook.plan._limit import BOTH_SHARE, FREE_SHARE, MemoryLimit
from tunebook.plan._make import Knowledge, Room, expected, holdings, make, without
from tunebook.plan._repair import UNCHANGED, Repaired, loses, repair, seconds_a_round, unchanged
from tunebook.plan._serving import Serving
from tunebook.plan._unseen import REMEDY
from tunebook.plan._verify import OVERDRAFT, Proof, Step, verify
from tunebook.plan._weigh import Shares, phase_shares, weigh

__all__ = [
    "BOTH_SHARE",
    "EFFECT_ROUNDS",
    "FREE_SHARE",
    "OVERDRAFT",
    "REMEDY",
    "UNCHANGED",
    "Choices",
    "Knowledge",
    "MemoryLimit",
    "Proof",
    "Repaired",
    "Room",
    "Serving",
    "Shares",
    "Step",
    "Usable",
    "Weights",
    "choose_layouts",
    "expected",
    "holdings",
    "install",
    "loses",
    "make",
    "measure_effects",
    "phase_shares",
    "prepare",
    "release",
    "repair",
    "seconds_a_round",
    "unchanged",
    "verify",
    "weigh",
    "without",
]
