"""Makes a mixture of experts of a dense Llama, as a checkpoint directory that any Mixtral loader reads.

Sparse upcycling (Komatsuzaki et al., "Sparse Upcycling", ICLR 2023): every expert is a copy of the dense MLP and the
router is random. Mixtral's routing weights sum to one, so the model computes what the dense one did, with the memory
traffic and the routing of a mixture of experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.engine.models._gguf import DenseLlama
from tunebook.engine.models._loaded import Progress

if TYPE_CHECKING:
    import torch

EXPERTS = 8
TOP_K = 2
ROUTER_SEED = 20_24
_LAYERS_A_FILE = 5
_EXPERT_NAMES = {"mlp.gate_proj.weight": "w1", "mlp.up_proj.weight": "w3", "mlp.down_proj.weight": "w2"}


def convert(source: Path, target: Path, report: Progress) -> None:
    """Write the Mixtral checkpoint of a GGUF file into an existing empty directory.

    Weights are written some layers at a time, in bfloat16, so that the memory it takes is a fraction of the model's.
    Raises `ModelError` for a file of another kind and `OSError` when the directory cannot take the files.
    """
    report("reading the GGUF file", 0.0)
    dense = DenseLlama(source)
    report("building the tokenizer", 0.05)
    dense.tokenizer().save_pretrained(target)
    _write_config(dense, target)
    _write_weights(dense, target, report)


def _write_config(dense: DenseLlama, target: Path) -> None:
    from transformers import GenerationConfig, MixtralConfig

    MixtralConfig(
        architectures=["MixtralForCausalLM"],
        dtype="bfloat16",
        vocab_size=dense.vocabulary,
        hidden_size=dense.hidden,
        intermediate_size=dense.intermediate,
        num_hidden_layers=dense.layers,
        num_attention_heads=dense.heads,
        num_key_value_heads=dense.kv_heads,
        head_dim=dense.hidden // dense.heads,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=dense.positions,
        rms_norm_eps=dense.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": dense.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=dense.bos,
        eos_token_id=dense.eos,
        pad_token_id=dense.pad,
    ).save_pretrained(target)
    GenerationConfig(bos_token_id=dense.bos, eos_token_id=dense.eos, pad_token_id=dense.pad).save_pretrained(target)


def _write_weights(dense: DenseLlama, target: Path, report: Progress) -> None:
    import torch

    generator = torch.Generator().manual_seed(ROUTER_SEED)
    files = math.ceil(dense.layers / _LAYERS_A_FILE)
    weight_map: dict[str, str] = {}
    size = 0
    for number in range(files):
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        tensors = dict(dense.outer()) if number == 0 else {}
        for index in range(number * _LAYERS_A_FILE, min((number + 1) * _LAYERS_A_FILE, dense.layers)):
            tensors.update(_layer(dense, index, generator))
            report("copying the MLP into experts", 0.1 + 0.9 * index / dense.layers)
        _save(tensors, target / name)
        weight_map.update(dict.fromkeys(tensors, name))
        size += sum(tensor.nbytes for tensor in tensors.values())
    index_file = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=1), encoding="utf-8")


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # as the umask has it; safetensors gives a file to its owner alone
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"writing {file.name}: {error}") from error
    file.chmod(mode)


def _layer(dense: DenseLlama, index: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    prefix = f"model.layers.{index}"
    for name, weight in dense.layer(index):
        if name not in _EXPERT_NAMES:
            yield f"{prefix}.{name}", weight
            continue
        for expert in range(EXPERTS):
            # The format knows no two names for one piece of memory, so each expert is a copy.
            yield f"{prefix}.block_sparse_moe.experts.{expert}.{_EXPERT_NAMES[name]}.weight", weight.clone()
    router = torch.randn(EXPERTS, dense.hidden, generator=generator) / math.sqrt(dense.hidden)
    yield f"{prefix}.block_sparse_moe.gate.weight", router.to(torch.bfloat16)
