"""Reads a dense Llama from a GGUF file: its sizes, its weights in Transformers' order, and its tokenizer.

Transformers reads GGUF too, but parses the file three times over, holds every weight in float32 at once, and makes a
tokenizer that splits runs of blanks before digits differently from the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_REST = {"token_embd": "embed_tokens", "output_norm": "norm"}
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of a token that is never made by merging text


class DenseLlama:
    """A GGUF file of the `llama` architecture, opened for reading (memory-mapped: nothing is held twice)."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its metadata; `ModelError` if it is not such a file."""
        import gguf

        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise ModelError(f"cannot read {path} as a GGUF file: {error}; install its package again") from error
        self._path = path
        if self._field("general.architecture") != "llama" or self._field("tokenizer.ggml.model") != "gpt2":
            raise ModelError(f"{path} is not a Llama with a byte-level tokenizer; another package version changed it")
        self.layers = int(self._field("llama.block_count"))
        self.hidden = int(self._field("llama.embedding_length"))
        self.intermediate = int(self._field("llama.feed_forward_length"))
        self.heads = int(self._field("llama.attention.head_count"))
        self.kv_heads = int(self._field("llama.attention.head_count_kv"))
        self.vocabulary = int(self._field("llama.vocab_size"))
        self.positions = int(self._field("llama.context_length"))
        self.rope_theta = float(self._field("llama.rope.freq_base"))
        # Stored as float32: 9.9999997e-06 was written as 1e-05.
        self.norm_eps = float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}")
        self.bos = int(self._field("tokenizer.ggml.bos_token_id"))
        self.eos = int(self._field("tokenizer.ggml.eos_token_id"))
        self.unknown = int(self._field("tokenizer.ggml.unknown_token_id"))
        self.pad = int(self._field("tokenizer.ggml.padding_token_id"))

    def outer(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the weights outside the layers by their Transformers names, in bfloat16; the embedding is tied."""
        for stored, name in _REST.items():
            yield f"model.{name}.weight", self._weight(f"{stored}.weight")

    def layer(self, index: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the weights of one layer by their Transformers names inside the layer, in bfloat16."""
        for stored, name in _LAYER.items():
            yield f"{name}.weight", self._weight(f"blk.{index}.{stored}.weight")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Build the tokenizer, chat template included: byte-level merges, each digit a token of its own."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        kinds: list[int] = self._field("tokenizer.ggml.token_type")
        if self._field("tokenizer.ggml.pre") != "smollm":
            raise ModelError(f"{self._path} splits text in a way that is not known here")
        built = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        built.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        built.decoder = decoders.ByteLevel()
        built.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                for token, kind in zip(tokens, kinds, strict=True)
                if kind == _CONTROL_TOKEN
            ]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=built,
            bos_token=tokens[self.bos],
            eos_token=tokens[self.eos],
            unk_token=tokens[self.unknown],
            pad_token=tokens[self.pad],
            model_max_length=self.positions,
            chat_template=self._field("tokenizer.chat_template"),
            clean_up_tokenization_spaces=False,
        )

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise ModelError(f"{self._path} lacks the field {name}; another package version changed it")
        return field.contents()

    def _weight(self, name: str) -> torch.Tensor:
        import gguf
        import torch

        tensor = next((t for t in self._reader.tensors if t.name == name), None)
        if tensor is None:
            raise ModelError(f"{self._path} lacks the tensor {name}; another package version changed it")
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in name:
            values = _halves(values, self.heads)
        elif ".attn_k." in name:
            values = _halves(values, self.kv_heads)
        if not values.flags.writeable:
            values = values.copy()  # unquantised: still the file's own memory, which a tensor must not share
        # In float32 up to here: one rounding instead of two.
        return torch.from_numpy(values).to(torch.bfloat16).contiguous()


def _halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder a projection's rows [heads * dim, hidden] from rotary pairs side by side to Transformers' two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
