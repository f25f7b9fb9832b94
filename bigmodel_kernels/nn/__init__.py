"""Drop-in modules: torch.nn's constructors, parameters, ``state_dict`` and outputs, computed by bigmodel_kernels.

MultiheadAttention, the Transformer family, Linear, LayerNorm and RMSNorm subclass torch.nn's own classes and change
nothing but the computation. They differ from torch.nn in what follows, and in nothing else:

- a query that may attend to no key gives zero weights and a zero attention output, where torch.nn gives NaN;
- training and eval compute the same function: ``is_causal=True`` without ``attn_mask`` raises in both (torch.nn ignores
  it in eval), padded positions of an encoder keep their computed values (torch.nn's eval writes zeros there), and
  ``GELU(approximate="tanh")`` is that everywhere (torch.nn's eval takes it for the exact one), and a floating mask is
  float32 or of the query's dtype (torch.nn's encoder layers take others in eval, its MultiheadAttention refuses float32
  beside a query of 16 bits with ``need_weights``);
- ``is_causal=True`` is believed also beside ``key_padding_mask`` and ``need_weights``, when the mask is square;
- dropout draws other random numbers, of the same distribution, from the same ``torch.manual_seed``;
- hooks on ``MultiheadAttention.out_proj`` run;
- torch.jit.script does not compile them and torch.fx.symbolic_trace does not trace them (torch.compile, torch.export,
  make_fx and torch.jit.trace do);
- gradients inside torch.func's transforms and forward-mode derivatives raise errors, unless the reference is named
  (`use_backend`).

Nested tensors, and dtypes that only torch.nn mixes, take torch.nn's own path; FeedForward calls its parts for nested
tensors.
"""

from bigmodel_kernels.nn.add_norm import LayerNorm, RMSNorm
from bigmodel_kernels.nn.attention import MultiheadAttention
from bigmodel_kernels.nn.feed_forward import FeedForward
from bigmodel_kernels.nn.linear import Linear
from bigmodel_kernels.nn.rotary_embedding import RotaryEmbedding, RotaryScaling
from bigmodel_kernels.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "FeedForward",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "RMSNorm",
    "RotaryEmbedding",
    "RotaryScaling",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
