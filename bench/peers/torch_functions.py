"""The rows as a PyTorch user would write them, in one or two ways each. torch only."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows import Attention, Decode, FeedForward, Linear, Module, Norm, PeerRow

EPS = 1e-5
# Above this many keys nobody multiplies the whole matrix of scores out.
_MOST_KEYS_OF_MATMUL = 512
_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def functions(row: PeerRow) -> dict[str, tuple[Callable, tuple[str, ...]]]:
    """Variant -> (function, names of the inputs it takes), for a row without a module."""
    work = row.work
    if isinstance(work, Attention):
        names = ("query", "key", "value", "mask")
        variants = {"sdpa": (_sdpa(work), names)}
        if work.length <= _MOST_KEYS_OF_MATMUL and not work.causal and work.kv_heads is None:
            variants["matmul"] = (_matmul(work), names)
        return variants
    if isinstance(work, Decode):
        names = ("query", "key", "value")
        return {"sdpa": (_sdpa_grouped_heads, names), "sdpa grouped-q": (_sdpa_query_block(work), names)}
    return {"": _norm(work)}


def modules(row: PeerRow) -> dict[str, Callable[[], nn.Module]]:
    """Variant -> a constructor of the module, on the meta device, for a row with parameters."""
    work = row.work
    if isinstance(work, FeedForward):
        return {"": lambda: _FeedForward(work)}
    if isinstance(work, Linear):
        return {"": lambda: _Linear(work)}
    if work.kind == "EncoderLayer":
        return {"nn": lambda: _encoder_layer(work), "linear+sdpa": lambda: _plain_layer(work)}
    if work.kind == "MHA weights":
        return {"nn": lambda: _SelfAttention(work)}
    return {"nn": lambda: _SelfAttention(work), "linear+sdpa": lambda: _PlainSelfAttention(work)}


def _sdpa(work: Attention) -> Callable:
    return lambda q, k, v, mask: F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=work.causal, enable_gqa=work.kv_heads is not None
    )


def _matmul(work: Attention) -> Callable:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = (query * work.head_dim**-0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(dim=-1) @ value

    return attend


def _sdpa_grouped_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def _sdpa_query_block(work: Decode) -> Callable:
    """The query heads of one key head as the rows of one short block."""
    group = work.heads // work.kv_heads

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block = query.view(work.batch, work.kv_heads, group, work.head_dim)
        return F.scaled_dot_product_attention(block, key, value).reshape(query.shape)

    return attend


def _norm(work: Norm) -> tuple[Callable, tuple[str, ...]]:
    if work.kind == "LayerNorm":
        return (lambda x, w, b: F.layer_norm(x, (work.width,), w, b, EPS)), ("x", "weight", "bias")
    if work.kind == "RMSNorm":
        return (lambda x, w: F.rms_norm(x, (work.width,), w, EPS)), ("x", "weight")

    def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, F.layer_norm(total, (work.width,), weight, bias, EPS)

    return add_norm, ("x", "residual", "weight", "bias")


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device="meta"))


class _Linear(nn.Module):
    def __init__(self, work: Linear):
        super().__init__()
        self.weight, self.bias = _empty(work.out_width, work.width), _empty(work.out_width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _FeedForward(nn.Module):
    def __init__(self, work: FeedForward):
        super().__init__()
        self.w1, self.w2 = _empty(work.hidden, work.width), _empty(work.width, work.hidden)
        gated = work.gate == "hidden"
        self.b1, self.b2 = (None, None) if gated else (_empty(work.hidden), _empty(work.width))
        self.w_gate = _empty(work.hidden, work.width) if gated else None
        self._activation = _ACTIVATIONS[work.activation]

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.w1, self.b1)
        if self.w_gate is None:
            return F.linear(self._activation(hidden), self.w2, self.b2)
        return F.linear(self._activation(F.linear(x, self.w_gate)) * hidden, self.w2)


class _SelfAttention(nn.MultiheadAttention):
    def __init__(self, work: Module):
        super().__init__(work.width, work.heads, batch_first=True, device="meta")
        self._need_weights = work.kind == "MHA weights"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        output, weights = super().forward(x, x, x, need_weights=self._need_weights)
        return (output, weights) if self._need_weights else output


def _attend(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Two products and F.scaled_dot_product_attention between them: what the module hides."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)
    return F.linear(heads.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


class _PlainSelfAttention(nn.MultiheadAttention):
    def __init__(self, work: Module):
        super().__init__(work.width, work.heads, batch_first=True, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self, x)


def _encoder_layer(work: Module) -> nn.Module:
    return nn.TransformerEncoderLayer(
        work.width, work.heads, 4 * work.width, 0.0, "gelu", batch_first=True, device="meta"
    )


class _PlainEncoderLayer(nn.TransformerEncoderLayer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + _attend(self.self_attn, x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


def _plain_layer(work: Module) -> nn.Module:
    return _PlainEncoderLayer(work.width, work.heads, 4 * work.width, 0.0, "gelu", batch_first=True, device="meta")
