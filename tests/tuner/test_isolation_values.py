"""Arguments in shared memory: they come out as they went in, and what a worker writes reaches nobody."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunebook.tuner._isolation._messages import Source
from tunebook.tuner._isolation._sources import guarded, source_of
from tunebook.tuner._isolation._values import Mapped, Memory, UnshareableError, value_of

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]

plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of several dtypes, views of larger ones among them: transposed, cut out, expanded, empty."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    made = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    made = made.to(draw(st.sampled_from(DTYPES)))
    view = draw(st.sampled_from(("whole", "transposed", "part", "expanded")))
    if view == "transposed":
        return made.permute(tuple(reversed(range(made.ndim))))
    if view == "part" and made.ndim:
        return made[1:]
    return made.unsqueeze(0).expand(3, *shape) if view == "expanded" else made


values = st.recursive(
    plain | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one, other)
        )
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and bool(one == other)


def mapped(memory: Memory) -> Mapped:
    return Mapped(os.dup(memory.fd))


@given(st.lists(values, min_size=1, max_size=4))
def test_values_come_out_as_they_went_in(given: list[Any]) -> None:
    memory = Memory()
    try:
        told = [memory.add(value) for value in given]
        memory.seal()
        there = mapped(memory)
        assert all(same(value, value_of(one, there)) for value, one in zip(given, told, strict=True))
    finally:
        memory.close()


def test_strides_that_matter_are_kept() -> None:
    memory = Memory()
    told = memory.add(torch.arange(12).reshape(3, 4).t())
    memory.seal()
    assert value_of(told, mapped(memory)).stride() == (1, 4)
    memory.close()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1 << 63, "64 bits"),
        (object(), "of type object"),
        ({}, "of type dict"),
        (torch.Size((1,)), "of type Size"),
        (torch.eye(2).to_sparse(), "a tensor of torch.sparse"),
        (torch.tensor([1j]).conj(), "a tensor of"),
        (torch.empty(1, device="meta"), "on meta"),
        ("\udc80", "no Unicode"),
        ((1, [b"x"]), "of type bytes"),
    ],
)
def test_what_cannot_be_shared_is_named(value: object, words: str) -> None:
    with pytest.raises(UnshareableError, match=words):
        Memory().add(value)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which pages were written")
def test_what_one_writes_nobody_else_sees_and_it_is_noticed() -> None:
    memory = Memory()
    told = memory.add(torch.zeros(5000))
    memory.seal()
    one, other = mapped(memory), mapped(memory)
    tensor, same_one = value_of(told, one), value_of(told, other)
    assert tensor.sum() == same_one.sum() == 0
    assert one.told
    tensor.mul_(1)
    assert not one.changed(), "the same bits again"
    tensor[4000] = 1
    assert one.changed()
    assert not other.changed()
    assert same_one.sum() == 0
    assert value_of(told, mapped(memory)).sum() == 0
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(memory.fd, b"x", 0)
    memory.close()


@pytest.mark.parametrize(
    ("text", "is_guarded"),
    [
        ("if __name__ == '__main__':\n    run()", True),
        ('import sys\nif "__main__" == __name__:\n    sys.exit(run())', True),
        ("run()", False),
        ("if __name__ != '__main__':\n    run()", False),
        ("def f():\n    if __name__ == '__main__':\n        run()", False),
        ("if name == '__main__':\n    run()", False),
        ("if (", False),
        ("\0", False),
    ],
)
def test_a_program_is_imported_only_where_it_is_guarded(tmp_path: Path, text: str, is_guarded: bool) -> None:
    (tmp_path / "program.py").write_text(text)
    assert guarded(tmp_path / "program.py") is is_guarded


def test_where_things_are_declared() -> None:
    assert source_of("tunebook.kernels") == Source(name="tunebook.kernels")
    assert source_of("") == "it is not declared in a module; declare it in one"
