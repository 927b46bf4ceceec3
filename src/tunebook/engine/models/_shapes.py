"""The configurations of the models whose weights are random: real shapes for timing, tiny ones for tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tunebook.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# No token ends a text or pads a batch: random weights would meet such a token by accident and stop a generation early.
_NO_SPECIAL_TOKENS: Mapping[str, Any] = MappingProxyType(
    {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
)

# 64 hidden and 96 intermediate: different, so that a swapped pair shows, and rows of whole 16 bytes, which grouped_mm
# asks for.
_TINY: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        **_NO_SPECIAL_TOKENS,
    }
)

TINY_ARCHITECTURES = ("mixtral", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss")


def tiny_config(architecture: str) -> PreTrainedConfig:
    """Give a configuration of a named architecture that makes a model of well under a megabyte.

    All have 2 layers, hidden size 64, expert size 96, 8 experts, top-2, and 256 tokens; Qwen3-MoE, OLMoE and GPT-OSS
    differ in how they normalise the routing weights. An unknown name is a `UsageError`.
    """
    import transformers

    match architecture:
        case "mixtral":
            return transformers.MixtralConfig(**_TINY, num_local_experts=8)
        case "qwen3_moe":
            return transformers.Qwen3MoeConfig(
                **_TINY, moe_intermediate_size=96, num_experts=8, head_dim=16, norm_topk_prob=True
            )
        case "olmoe":
            return transformers.OlmoeConfig(**_TINY, num_experts=8)
        case "granitemoe":
            return transformers.GraniteMoeConfig(
                **_TINY,
                num_local_experts=8,
                tie_word_embeddings=True,
                embedding_multiplier=4.0,
                attention_multiplier=0.25,
                residual_multiplier=0.5,
                logits_scaling=2.0,
            )
        case "gpt_oss":
            # Its default rotary scaling stretches 4,096 positions to 131,072; a tiny model has no use for it.
            return transformers.GptOssConfig(
                **_TINY,
                num_local_experts=8,
                head_dim=16,
                sliding_window=16,
                rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
            )
    raise UsageError(f"architecture {architecture!r} is not known; it is one of {', '.join(TINY_ARCHITECTURES)}")


def tiny_moe() -> PreTrainedConfig:
    """Give the shape of `tiny-moe`: Mixtral, 3 layers, hidden 128, 8 experts of 256, top-2; 2.7 M parameters."""
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        **_NO_SPECIAL_TOKENS,
    )


def granite_1b_moe() -> PreTrainedConfig:
    """Give the shape of Granite-3.0-1B-A400M: 24 layers, hidden 1024, 32 experts of 512, top-8; 1.3 B parameters."""
    from transformers import GraniteMoeConfig

    return GraniteMoeConfig(
        vocab_size=49155,
        hidden_size=1024,
        intermediate_size=512,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_local_experts=32,
        num_experts_per_tok=8,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        attention_multiplier=0.015625,
        residual_multiplier=0.22,
        logits_scaling=6.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **_NO_SPECIAL_TOKENS,
    )


def qwen3_moe_8l() -> PreTrainedConfig:
    """Give a Qwen3-MoE shape of 8 layers: hidden 1024, 64 experts of 768, top-8, 32,000 tokens; 1.3 B parameters."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=3072,
        moe_intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        **_NO_SPECIAL_TOKENS,
    )
