"""The kernels of the op `experts`: the expert layer of a mixture-of-experts model."""

from tunebook.kernels._experts._routing import ACTIVATIONS

__all__ = ["ACTIVATIONS"]
