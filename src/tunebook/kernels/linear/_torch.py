"""The linear product in plain PyTorch, several ways.

Semantics of all of them: x [..., K], weight [N, K], bias [N] or None, all bf16 or all fp32; returns
``x @ weight.T + bias``, [..., N], contiguous. For inference: no gradient may be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
