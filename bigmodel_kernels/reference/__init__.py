"""The oracle: every op in plain PyTorch, with the names and signatures of the op schemas (python/src/library.cpp).

Differentiable by torch's own autograd in any floating dtype, on any device. Truth in the tests is this package in
float64; run in a lower precision it rounds after every operation, as a plain PyTorch user's code would.
"""

from .add_norm import add_norm
from .attention import attention
from .attention_decode import attention_decode
from .attention_varlen import attention_varlen
from .attention_weights import attention_weights
from .feed_forward import feed_forward
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .rotary import rotary, rotary_

__all__ = [
    "add_norm",
    "attention",
    "attention_decode",
    "attention_varlen",
    "attention_weights",
    "feed_forward",
    "linear",
    "linear_cross_entropy",
    "rotary",
    "rotary_",
]
