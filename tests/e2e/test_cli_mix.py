"""Calls that `tunebook generate` records, and a plan that `tunebook tune` makes of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tunebook.engine.models import random_model, tiny_config

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model of random weights with a tokenizer of as many words."""
    config = tiny_config("mixtral")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    random_model(config, "float32").save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_generate_records_and_tune_plans_for_it(
    checkpoint: Path, tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    home, path = tmp_path / "home", tmp_path / "mix.json"
    generate = ("generate", checkpoint, "--prompt", "w1 w2 w3", "--max-new-tokens", "4", "--record-mix", path, "--json")
    counts = []
    for _ in range(2):
        cli_inside(home, *generate)
        counts.append(json.loads(path.read_text())["calls"])
    assert counts[1] == {key: 2 * count for key, count in counts[0].items()}, "a second recording adds to the first"
    tokens = {key.rpartition("|")[2]: count for key, count in counts[0].items() if key.startswith("experts|")}
    assert tokens == {"M≤4": 2, "M≤1": 6}, "two layers: a prompt of three tokens, and three more steps"

    narrow = ("--decode", "1", "--prefill", "4", "--op", "experts", "--only-runner", "torch", "--budget", "5")
    done = cli_inside(home, "tune", checkpoint, *narrow, "--mix", path)
    assert f"mix: {sum(counts[1].values()):,} calls of {len(counts[1])} problems" in done.stdout
    plan = json.loads(cli_inside(home, "tune", checkpoint, *narrow, "--memory-limit", "1.5x", "--json").stdout)["plan"]
    assert plan["mix"]["calls"] == counts[1], "who asks for no mix gets the plan's"
    assert plan["limit"] == "1.5x"

    wrong = cli_inside(home, "tune", "tiny-moe", *narrow, "--mix", path, code=2, TUNEBOOK_LOG_LEVEL="ERROR")
    assert all(word in complaint(wrong) for word in ("another model", "model"))
    path.write_text("{}")
    broken = cli_inside(home, "tune", checkpoint, *narrow, "--mix", path, code=1, TUNEBOOK_LOG_LEVEL="ERROR")
    assert str(path) in complaint(broken)
