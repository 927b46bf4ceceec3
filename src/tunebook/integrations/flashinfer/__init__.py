"""FlashInfer under tunebook: FlashInfer keeps dispatching, tunebook measures, chooses, keeps and installs.

    with tunebook.flashinfer.autotune(cache="winners.json"):   # in place of flashinfer.autotune(...)
        model(inputs)

Written against flashinfer-python 0.6.18 and 0.7; other versions are refused by name.
"""

from tunebook.integrations.flashinfer._context import autotune
from tunebook.integrations.flashinfer._install import Kept, Line, beside_runs, export, known
from tunebook.integrations.flashinfer._package import Package
from tunebook.integrations.flashinfer._session import Session

__all__ = ["Kept", "Line", "Package", "Session", "autotune", "beside_runs", "export", "known"]
