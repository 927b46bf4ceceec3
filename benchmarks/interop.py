"""Reading other tuners' books: FlashInfer's caches of 5,000 entries in both of its forms, and SGLang's tree of eight ranks.

The books are made up, key by key as FlashInfer writes them. Each reading is a process of its own, so that nothing is warm but
the files in the page cache; `read` is `tunebook.interop.open_any`, which tells the format and checks every entry, without
the start of Python and the imports, which `import` is. `write` is the whole book written again.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _common import Result, finish, options

from tunebook.devices import device_of
from tunebook.interop import ForeignBook, by_name, open_any, write
from tunebook.stats import Interval, median_interval

ENTRIES, QUICK_ENTRIES = 5_000, 200
READINGS, QUICK_READINGS = 11, 2
RANKS = 8
LIMIT_S = 0.5

CHILD = """
import json, sys, time
times = [time.perf_counter()]
from pathlib import Path
from tunebook.interop import by_name, open_any, write
times.append(time.perf_counter())
book = open_any(sys.argv[1])
times.append(time.perf_counter())
write(by_name(book.format), book, Path(sys.argv[2]))
times.append(time.perf_counter())
print(json.dumps([len(book.entries), *(after - before for before, after in zip(times, times[1:]))]))
"""


def document(entries: int, seed: int) -> dict[str, object]:
    """A v1 file of so many problems: GEMMs and MoE layers of some models, at fifteen sizes each."""
    rng = random.Random(seed)
    found: dict[str, object] = {
        "_metadata": {
            "flashinfer_version": "0.7.2",
            "cuda_version": "13.0",
            "cublas_version": "13.1.0",
            "cudnn_version": "91400",
            "cudnn_frontend_version": "1.16.0",
            "cutlass_dsl_version": "4.3.1",
            "gpu": "NVIDIA B200",
        }
    }
    for number in range(entries):
        model, bucket = divmod(number, 15)
        rows, width = 2**bucket, 128 * (1 + model % 61)
        if model % 2:
            shapes = f"(({rows}, {width}), ({width}, {64 * (8 + model)}), ({rows}, {width // 16}))"
            runner, extras = "CutlassFp4GemmRunner", "(torch.uint8, torch.bfloat16, True)"
            key, tactic = f"('fp4_gemm', '{runner}', {shapes}, {extras})", rng.randrange(40)
        else:
            shapes = f"(({rows}, {width}), (256, {2 * width}, {64 * (8 + model)}), ({rows}, 8), ({rows}, 8))"
            runner, extras = "TrtllmFp4MoeRunner", "(torch.bfloat16, 'swiglu', None, 8)"
            key = f"('trtllm_fp4_block_scale_moe', '{runner}', {shapes}, {extras})"
            tactic = [rng.randrange(20), [rng.randrange(8), rng.randrange(8)]]  # type: ignore[assignment]
        policy = ["cuda_graph_profile_replays", None, "l2_cache_policy", "cold"]
        found[key] = [runner, tactic, policy]
    return found


def books(folder: Path, entries: int) -> dict[str, Path]:
    """By name, the books on the disk."""
    v1 = folder / "v1.json"
    v1.write_text(json.dumps(document(entries, 1), indent=2))
    book = open_any(v1)
    assert isinstance(book, ForeignBook)
    write(by_name("flashinfer-v2"), book, folder / "v2")
    tree = folder / "sglang" / "0.7.2" / "sm100" / "0123456789abcdef"
    tree.mkdir(parents=True)
    for rank in range(RANKS):
        text = json.dumps(document(entries // RANKS, rank), indent=2)
        (tree / f"rank_tp{rank}_pp0_dp0.json").write_text(text)
    return {
        "FlashInfer v1": v1,
        "FlashInfer v2": folder / "v2",
        f"SGLang, {RANKS} ranks": folder / "sglang",
    }


def size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def main() -> None:
    args = options(__doc__.splitlines()[0]).parse_args()
    entries, readings = (QUICK_ENTRIES, QUICK_READINGS) if args.quick else (ENTRIES, READINGS)
    result = Result(
        title="Reading other tuners' books, ms, median [95 %]",
        columns=("book", "entries", "files, MB", "import", "read", "write"),
    )
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = books(folder, entries)
        times: dict[str, list[list[float]]] = {book: [] for book in found}
        for reading in range(readings):
            for book in rng.sample(list(found), len(found)):
                target = folder / "again" / f"{book}-{reading}{found[book].suffix}"
                command = [sys.executable, "-c", CHILD, str(found[book]), str(target)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                times[book].append(json.loads(done.stdout))
        for book, path in found.items():
            counts, *columns = zip(*times[book], strict=True)
            middles = [median_interval(list(column)) for column in columns]
            result.rows.append((book, f"{int(counts[0]):,}", f"{size(path) / 1e6:.1f}", *map(shown, middles)))
            result.figures[f"read_{path.stem}_s"] = middles[1].value
    for name in ("v1", "v2"):
        result.goals[f"read_{name}_s"] = ("<=", LIMIT_S)
    result.notes += [
        f"{readings} readings of each, a process each, interleaved; the files are in the page cache",
        "a v2 store is a file an entry: reading it is opening so many files; `write` of it does not wait for the disk",
    ]
    finish(result, args, dict(device_of("cpu").environment().hard))


def shown(interval: Interval) -> str:
    return f"{1e3 * interval.value:.1f} [{1e3 * interval.low:.1f}, {1e3 * interval.high:.1f}]"


if __name__ == "__main__":
    main()
