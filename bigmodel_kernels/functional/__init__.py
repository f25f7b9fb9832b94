"""The documented API: what the ops compute, for every backend alike.

Arguments are checked here and errors begin with the op's name in brackets (`[attention] ...`): ValueError for wrong
shapes, dtypes and values, TypeError for wrong types, RuntimeError when a backend was named that cannot run the call.
Every function but attention_decode is differentiable (twice through the reference). All honour torch.autocast, and
trace under torch.compile(fullgraph=True).
"""

from .add_norm import add_norm
from .attention import attention
from .attention_decode import attention_decode
from .attention_varlen import attention_varlen
from .attention_weights import attention_weights
from .feed_forward import feed_forward
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .rotary import rotary
from .scaled_dot_product_attention import scaled_dot_product_attention

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
    "scaled_dot_product_attention",
]
