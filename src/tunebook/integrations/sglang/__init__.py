"""SGLang's FlashInfer autotune step under tunebook: with TUNEBOOK_FLASHINFER=1 in the environment, or from Python

    tunebook.sglang.enable()   # before the engine is made

Written against SGLang 0.5.23; other versions are refused by name, and FlashInfer tunes there as ever.
"""

from tunebook.integrations.sglang._plugin import disable, enable, plugin

__all__ = ["disable", "enable", "plugin"]
