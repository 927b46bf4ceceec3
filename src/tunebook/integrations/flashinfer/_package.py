"""The FlashInfer that is installed: its autotuner, which versions of it are known here, and what its timings depend on."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from tunebook.errors import UsageError

_KNOWN = re.compile(r"0\.6\.18(\.post[0-9]+)?|0\.7(\.[0-9]+)*(\.post[0-9]+)?")
KNOWN = "0.6.18 and 0.7"
#: What is called or replaced of an `AutoTuner`; a version that lacks one of these is refused too.
_NEEDED = (
    "choose_one",
    "prepare_tactic_profile",
    "profile_tactic",
    "search_cache",
    "load_configs",
    "save_configs",
    "clear_cache",
    "_apply_tuning_overrides",
    "_generate_optimization_profiles",
    "_prepare_input_tensors",
    "_get_cache_key",
    "_get_input_sizes",
)


@dataclass(frozen=True, slots=True)
class Package:
    """`module` is ``flashinfer.autotuner``; `facts` are those that FlashInfer keeps with its own caches."""

    module: Any
    version: str
    facts: dict[str, str]

    @property
    def tuner(self) -> Any:
        """The process's one `AutoTuner`."""
        return self.module.AutoTuner.get()

    def measuring(self) -> AbstractContextManager[None]:
        """In the block FlashInfer's runners act as they do while they are timed: with memory that fits every tactic."""
        inner = importlib.import_module("flashinfer.autotuner.autotuner")
        found: AbstractContextManager[None] = inner._profile_measurement_scope()
        return found

    @property
    def group(self) -> Any:
        """The process group over whose ranks FlashInfer's tactics have to be the same, if it has more than one."""
        group = self.module.get_autotune_process_group()
        return group if group is not None and group.size() > 1 else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In the block FlashInfer does not reduce its timings over its group: this rank measures on its own."""
        group = self.module.get_autotune_process_group()
        self.module.set_autotune_process_group(None)
        try:
            yield
        finally:
            self.module.set_autotune_process_group(group)

    @property
    def stamp(self) -> str:
        """What a runner's tactics depend on: FlashInfer's version, and a digest of its facts (cuBLAS, cuDNN, CUTLASS DSL …).

        A tactic is often an index into a list that one of these libraries makes.
        """
        text = json.dumps(self.facts, sort_keys=True)
        return f"{self.version}+{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def package() -> Package:
    """The installed FlashInfer. Raises UsageError where there is none, and for a version that is not known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top, module = importlib.import_module("flashinfer"), importlib.import_module("flashinfer.autotuner")
    except ImportError as error:
        raise UsageError(
            f"FlashInfer cannot be imported ({error}); install it: pip install 'flashinfer-python>=0.6.18,<0.8'"
        ) from error
    version = str(getattr(top, "__version__", "unknown"))
    if not _KNOWN.fullmatch(version):
        raise UsageError(
            f"flashinfer-python {version} is not one that tunebook knows ({KNOWN}): install one of these, or tune with "
            "flashinfer.autotune"
        )
    lacking = [name for name in _NEEDED if not hasattr(module.AutoTuner, name)]
    if lacking:
        raise UsageError(
            f"flashinfer-python {version}: its AutoTuner has no {lacking[0]}; it was changed, so tune with flashinfer.autotune"
        )
    facts = {str(name): str(value) for name, value in module._collect_metadata().items()}
    return Package(module, version, facts)
