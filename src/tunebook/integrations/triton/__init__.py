"""Triton's kernels under tunebook: what ``@triton.autotune`` lists is raced, kept and served as any op's tactics are.

import tunebook.integrations.triton

@tunebook.integrations.triton.op(outputs=["out_ptr"])  # the one line that is new
@triton.autotune(configs=[...], key=["n"])
@triton.jit
def kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr): ...

kernel[grid](x, out, n)  # as before
"""

from tunebook.integrations.triton._op import TritonOp, op

__all__ = ["TritonOp", "op"]
