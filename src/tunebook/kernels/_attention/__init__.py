"""The ops of an attention layer: `qkv`, from hidden states to turned heads, and `attend`, one token against a cache."""

from tunebook.kernels._attention._native import append
from tunebook.kernels._attention._ops import attend, qkv

__all__ = ["append", "attend", "qkv"]
