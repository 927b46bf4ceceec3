"""Ops: what is tuned, in which buckets, by which runners, and what each of them needs and is worth today."""

from tunebook.ops._buckets import Bucket, buckets, exact, multiple, pow2
from tunebook.ops._example import Example, example_inputs, example_options
from tunebook.ops._requires import Requirement, as_requirement, requires
from tunebook.ops._runner import Runner
from tunebook.ops._shape import Description, Shape, draw_rows, dtype_name
from tunebook.ops._spec import OpSpec
from tunebook.ops._usercode import load_file
from tunebook.ops._version import runner_version

__all__ = [
    "Bucket",
    "Description",
    "Example",
    "OpSpec",
    "Requirement",
    "Runner",
    "Shape",
    "as_requirement",
    "buckets",
    "draw_rows",
    "dtype_name",
    "exact",
    "example_inputs",
    "example_options",
    "load_file",
    "multiple",
    "pow2",
    "requires",
    "runner_version",
]
