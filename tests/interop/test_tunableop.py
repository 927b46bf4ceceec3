"""PyTorch TunableOp's CSV: read with the right values, written back byte for byte, refused with the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURE = Path(__file__).parent / "fixtures" / "tunableop" / "tunableop_results0.csv"
LATER = FIXTURE.with_name("later.csv")
HEAD = "Validator,PT_VERSION,2.9.0\n"
FORMAT = interop.by_name("tunableop")


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "tunableop"
    return book


def test_what_pytorch_wrote_is_read() -> None:
    """It wrote what make_tunableop.py handed to it: of a sizes' two lines the first, 0 for a time that was missing."""
    book = book_of(FIXTURE.with_name("pytorch.csv"))

    assert book.facts == {"PT_VERSION": "2.9.1"}
    assert book.misses == ()
    assert {entry.choice for entry in book.entries.values()} == {"Default"}
    assert [entry.seconds for entry in book.entries.values()] == [1.26215e-3, 3.31e-5, None, 2.93e-5]


def test_validators_and_entries_have_their_values() -> None:
    book = book_of(FIXTURE)

    assert book.facts["PT_VERSION"] == "2.9.0"
    assert book.facts["GCN_ARCH_NAME"] == "gfx942:sramecc+:xnack-"
    assert len(book.entries) == 6
    assert book.misses == ()
    entry = book.entries["GemmTunableOp_float_NT,nt_25088_4096_64_ld_25088_4096_25088"]
    assert entry.op == "GemmTunableOp_float_NT"
    assert entry.problem == "nt_25088_4096_64_ld_25088_4096_25088"
    assert entry.choice == "Gemm_Hipblaslt_1219"
    assert entry.seconds == pytest.approx(1.26215e-3)


def test_a_time_that_was_not_measured_or_not_written_is_none() -> None:
    times = {entry.op: entry.seconds for entry in book_of(FIXTURE).entries.values()}

    assert times["GemmStridedBatchedTunableOp_Half_NN"] is None
    assert times["ScaledGemmTunableOp_Float8_e4m3fnuz_Float8_e4m3fnuz_BFloat16_TN"] is None


def test_what_follows_the_time_is_kept_and_not_taken_for_it() -> None:
    entry = next(e for e in book_of(FIXTURE).entries.values() if e.op.startswith("GemmAndBias"))

    assert entry.choice == "Gemm_Hipblaslt_40210"
    assert entry.seconds == pytest.approx(2.93e-5)


@pytest.mark.parametrize("path", [FIXTURE, LATER], ids=lambda path: path.name)
def test_it_is_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    FORMAT.write(book_of(path), tmp_path / "again.csv")

    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


@given(
    st.dictionaries(
        st.tuples(
            *[st.text(st.characters(codec="ascii", categories=["L", "N", "P"], exclude_characters=","), min_size=1)] * 2
        ),
        st.tuples(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.floats(1e-6, 1e6)),
        min_size=1,
    ).filter(lambda rows: all(op != "Validator" for op, _ in rows))
)
def test_any_rows_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[str, str], tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "results.csv"
    path.write_text(HEAD + "".join(f"{op},{sizes},{name},{ms!r}\n" for (op, sizes), (name, ms) in rows.items()))

    entries = book_of(path).entries

    assert {(e.op, e.problem): (e.choice, e.seconds) for e in entries.values()} == {
        key: (name, pytest.approx(ms * 1e-3)) for key, (name, ms) in rows.items()
    }


def test_of_two_lines_for_one_problem_the_first_counts_and_the_other_is_named(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text(HEAD + "Gemm,nn_1_2_3,A,0.5\n\nGemm,nn_1_2_3,B,0.25\n")

    book = book_of(path)

    assert book.entries["Gemm,nn_1_2_3"].choice == "A"
    assert [str(miss) for miss in book.misses] == [
        f"{path}, line 4: entry: Gemm,nn_1_2_3 is in line 2 too, which is the one that PyTorch uses"
    ]
    FORMAT.write(book, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_two_files_become_one_and_the_first_counts(tmp_path: Path) -> None:
    merged = interop.merge([book_of(FIXTURE), book_of(LATER)])

    assert merged.added == (1,)
    assert [flip.key for flip in merged.conflicts] == ["GemmTunableOp_float_NT,nt_25088_4096_64_ld_25088_4096_25088"]
    FORMAT.write(merged.book, tmp_path / "both.csv")
    assert (tmp_path / "both.csv").read_text() == FIXTURE.read_text() + LATER.read_text().splitlines()[-1] + "\n"
    assert book_of(tmp_path / "both.csv").entries == merged.book.entries


def test_files_of_different_versions_are_kept_apart(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(FIXTURE.read_text().replace("PT_VERSION,2.9.0", "PT_VERSION,2.10.0"))

    with pytest.raises(UsageError, match=r"do not belong together: PT_VERSION is 2\.9\.0 and 2\.10\.0"):
        interop.merge([book_of(FIXTURE), book_of(other)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("GemmTunableOp_float_NT,nt_1_2", "is not operator,parameters,solution"),
        ("GemmTunableOp_float_NT", "is not operator,parameters,solution"),
        ("Gemm,,A,0.5", "is not operator,parameters,solution"),
        ("Gemm,nn_1_2_3,A,nan", "time 'nan' is not a duration"),
        ("Gemm,nn_1_2_3,A,inf", "time 'inf' is not a duration"),
        ("Gemm,nn_1_2_3,A,-0.5", "time '-0.5' is not a duration"),
        ("Gemm,nn_1_2_3,A,fast", "time 'fast' is not a duration"),
        ("Gemm,nn_1_2_3,A,", "time '' is not a duration"),
        ("Validator,PT_VERSION", "is not operator,parameters,solution"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEAD}Gemm,nn_9_9_9,A,1\n{line}\n")

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: line 3: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(HEAD.encode() + b"Gemm,nn_1_2_3,\xff,1\n")

    with pytest.raises(StoreError, match=r"line 2, column 15: it is not UTF-8 text"):
        interop.open_any(path)


def test_a_list_of_what_is_still_to_be_tuned_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "tunableop_untuned0.csv"
    path.write_text("GemmTunableOp_float_NT,nt_25088_4096_64_ld_25088_4096_25088\n")

    assert interop.open_any(path) is None


def test_another_formats_book_is_not_written_as_this(tmp_path: Path) -> None:
    other = interop.ForeignBook(path=Path("a.json"), format="trtllm", facts={}, entries={}, content={})

    with pytest.raises(UsageError, match=r"a\.json is a book of trtllm"):
        FORMAT.write(other, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
