"""AITER's CSV: keys by op, candidates of one shape as trials, written back byte for byte, refused with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunebook import interop
from tunebook.errors import StoreError, UsageError

FIXTURES = Path(__file__).parent / "fixtures" / "aiter"
GEMM = FIXTURES / "a8w8_blockscale_tuned_gemm.csv"
FMOE = FIXTURES / "tuned_fmoe.csv"
PROFILE = FIXTURES / "profile.csv"
HEAD = "cu_num,M,N,K,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n"
FORMAT = interop.by_name("aiter")


def book_of(path: Path) -> interop.ForeignBook:
    book = interop.open_any(path)
    assert book is not None
    assert book.format == "aiter"
    return book


def test_what_the_package_ships_is_read() -> None:
    gemm, batched, fmoe = (
        book_of(FIXTURES / "shipped" / f"{name}.csv")
        for name in ("bf16_tuned_gemm", "bf16_tuned_batched_gemm", "tuned_fmoe")
    )

    assert [len(book.entries) for book in (gemm, batched, fmoe)] == [8, 26, 3]
    assert all(book.misses == () for book in (gemm, batched, fmoe))
    entry = gemm.entries[
        "gemm|M=64,N=256,K=5120,bias=False,dtype=torch.bfloat16,outdtype=torch.float32,scaleAB=False,cu_num=80"
    ]
    assert entry.seconds == pytest.approx(8.3e-6)
    assert entry.choice == "kernelName=_ZN5aiter28bf16gemm_outf32_tn_32x64_pf3E,libtype=asm,solidx=1,splitK=10"


def test_a_gemm_has_machine_shape_choice_and_time() -> None:
    book = book_of(GEMM)

    assert book.facts == {"cu_num": "256, 304"}
    assert len(book.entries) == 4
    entry = book.entries["gemm|cu_num=304,M=16,N=1536,K=7168"]
    assert entry.op == "gemm"
    assert entry.problem == "M=16,N=1536,K=7168"
    assert entry.choice == "kernelId=8,kernelName=a8w8_blockscale_256x16x64x256_intrawave_v1,splitK=0"
    assert entry.seconds == pytest.approx(21.4038e-6)
    assert entry.trials == ()


def test_a_fused_moe_is_keyed_by_its_tag_too() -> None:
    book = book_of(FMOE)

    assert [entry.op for entry in book.entries.values()] == ["fused_moe"] * 3
    tagged = [entry for entry in book.entries.values() if entry.key.endswith("_tag=flydsl")]
    assert len(tagged) == 1
    assert "token=2,model_dim=2048" in tagged[0].problem
    assert tagged[0].seconds == pytest.approx(50e-6)
    assert "kernelName1=moe_stage1_256x64x128x128" in tagged[0].choice
    assert "us1" not in tagged[0].choice


def test_a_fused_kernel_with_a_time_in_its_first_stage_only_has_that() -> None:
    entry = next(e for e in book_of(FMOE).entries.values() if "fmoe_blockscale_32x128" in e.choice)

    assert entry.seconds == pytest.approx(43.75e-6)


def test_all_results_of_one_shape_are_its_trials_and_the_fastest_is_the_choice() -> None:
    book = book_of(PROFILE)

    assert book.facts == {"gfx": "gfx950", "cu_num": "256"}
    several, single = book.entries.values()
    assert single.trials == ()
    assert several.choice == "kernelName=opus_gemm_256x32x32x128,libtype=opus,solidx=1202,splitK=4"
    assert several.seconds == pytest.approx(6.5e-6)
    assert [(trial.seconds, trial.reason) for trial in several.trials] == [
        (pytest.approx(8.1042e-6), ""),
        (None, "us is -1: not supported, or an error"),
        (pytest.approx(6.5e-6), ""),
        (None, "us is inf: it failed"),
    ]


@pytest.mark.parametrize("path", [GEMM, FMOE, PROFILE], ids=lambda path: path.name)
def test_it_is_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    FORMAT.write(book_of(path), tmp_path / "again.csv")

    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_white_space_and_an_empty_column_are_read_over_as_aiter_does(tmp_path: Path) -> None:
    path = tmp_path / "spaced.csv"
    path.write_text(" cu_num, M ,N,K,kernelId,us ,\n304, 16,32,64,8, 5.5,\n\n")

    (entry,) = book_of(path).entries.values()

    assert entry.key == "gemm|cu_num=304,M=16,N=32,K=64"
    assert entry.choice == "kernelId=8"
    assert entry.seconds == pytest.approx(5.5e-6)


def test_a_line_that_repeats_another_is_named_and_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text(HEAD + "304,1,2,3,8,0,5,k,1,1,0\n304,1,2,3,8,0,4,k,1,1,0\n")

    book = book_of(path)

    assert [str(miss) for miss in book.misses] == [
        f"{path}, line 3: entry: it has key and choice of line 2, which counts"
    ]
    (entry,) = book.entries.values()
    assert entry.seconds == pytest.approx(5e-6)


def test_two_files_become_one_and_the_first_counts(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(HEAD + "304,16,1536,7168,9,0,1.5,another,1,1,0\n304,99,1536,7168,9,0,1.5,another,1,1,0\n")

    merged = interop.merge([book_of(GEMM), book_of(other)])

    assert merged.added == (1,)
    FORMAT.write(merged.book, tmp_path / "both.csv")
    assert (tmp_path / "both.csv").read_text() == GEMM.read_text() + other.read_text().splitlines()[-1] + "\n"
    assert book_of(tmp_path / "both.csv").entries == merged.book.entries


def test_files_with_different_columns_are_kept_apart() -> None:
    with pytest.raises(UsageError, match="have different columns"):
        interop.merge([book_of(GEMM), book_of(PROFILE)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("304,16,1536,7168,8,0,19.3", "7 columns, and the header has 11"),
        ("304,16,1536,7168,8,0,19.3,k,1,1,0,0", "12 columns, and the header has 11"),
        ("304,16,1536,7168,8,0,nan,k,1,1,0", "us 'nan' is not a number"),
        ("304,16,1536,7168,8,0,soon,k,1,1,0", "us 'soon' is not a number"),
        ("304,16,1536,7168,8,0,,k,1,1,0", "us '' is not a number"),
        ("304,16,1536,7168,8,0,-2,k,1,1,0", "is not a duration"),
        ('304,16,1536,7168,8,0,1,"k,1,1,0', "not CSV"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEAD}304,1,1,1,8,0,1,k,1,1,0\n{line}\n")

    with pytest.raises(StoreError) as error:
        interop.open_any(path)

    assert str(error.value).startswith(f"{path}: line 3: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("cu_num,M,M,kernelId,us\n")

    with pytest.raises(StoreError, match=r"bad\.csv: line 1: column M occurs twice"):
        interop.open_any(path)


def test_a_list_of_shapes_still_to_be_tuned_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "untuned_gemm.csv"
    path.write_text("M,N,K\n1,9216,4096\n")

    assert interop.open_any(path) is None
