"""The values that tunebook measures, keeps and serves: frozen, validated at birth, schema-versioned."""

from tunebook.records._base import SCHEMA, Record
from tunebook.records.coverage import OUTCOMES, CoverageDocument, Served
from tunebook.records.environment import Environment
from tunebook.records.files import (
    CacheDocument,
    Footer,
    Header,
    LookLine,
    OutLine,
    PassedLine,
    PlanLine,
    ProblemLine,
    RaceLine,
    ResumedLine,
    RunLine,
    SampleLine,
    Settings,
    TrialLine,
    VerdictLine,
)
from tunebook.records.mix import Mix, MixDocument, Profile
from tunebook.records.plan import Arrival, Effect, Holding, Outcome, Overall, Phase, Plan, outcome, phase_name
from tunebook.records.problem import SIGNS, Dim, Problem
from tunebook.records.tactic import DEFAULT, Scalar, Tactic
from tunebook.records.verdict import Member, Offered, Reason, Rejected, Status, Timed, Verdict

__all__ = [
    "DEFAULT",
    "OUTCOMES",
    "SCHEMA",
    "SIGNS",
    "Arrival",
    "CacheDocument",
    "CoverageDocument",
    "Dim",
    "Effect",
    "Environment",
    "Footer",
    "Header",
    "Holding",
    "LookLine",
    "Member",
    "Mix",
    "MixDocument",
    "Offered",
    "OutLine",
    "Outcome",
    "Overall",
    "PassedLine",
    "Phase",
    "Plan",
    "PlanLine",
    "Problem",
    "ProblemLine",
    "Profile",
    "RaceLine",
    "Reason",
    "Record",
    "Rejected",
    "ResumedLine",
    "RunLine",
    "SampleLine",
    "Scalar",
    "Served",
    "Settings",
    "Status",
    "Tactic",
    "Timed",
    "TrialLine",
    "Verdict",
    "VerdictLine",
    "outcome",
    "phase_name",
]
