"""vLLM's FlashInfer warm-up under tunebook: with TUNEBOOK_FLASHINFER=1 in the environment, or from Python

    tunebook.vllm.enable()   # before the engine is made

Written against vLLM 0.32; other versions are refused by name, and FlashInfer tunes there as ever.
"""

from tunebook.integrations.vllm._plugin import disable, enable, plugin

__all__ = ["disable", "enable", "plugin"]
