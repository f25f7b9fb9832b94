"""torch.nn's Transformer layers and stacks, each sublayer fused with the residual addition and the norm around it.

One path serves training and eval. What torch.nn switches to in eval (its fused encoder layer, and the conversion of
padded batches to nested tensors) is never taken, so ``enable_nested_tensor`` changes nothing here.
"""

import torch
from torch import Tensor

from bigmodel_kernels.functional import small_layers
from bigmodel_kernels.nn.add_norm import LayerNorm, add_norm
from bigmodel_kernels.nn.attention import JOINT_PARAMETERS, MultiheadAttention
from bigmodel_kernels.nn.counterparts import adopting, computes_for
from bigmodel_kernels.nn.fusion import (
    LINEAR,
    activation_name,
    feed_forward,
    is_plain,
    keeps,
    overrides,
    passes_through,
)
from bigmodel_kernels.nn.masks import is_causal_mask
from bigmodel_kernels.nn.members import plain_members

# The methods that one call for all of an encoder layer leaves out.
_ENCODER_METHODS = frozenset(("_attention", "_feed_forward", "_sa_block", "_ff_block"))

# What such a call needs of the submodules: settings, and the parameters in its order.
_NORM = (LayerNorm, torch.nn.LayerNorm)
_ENCODER_SETTINGS = (
    ("self_attn", (MultiheadAttention,), ()),
    *((name, _NORM, ("normalized_shape", "eps")) for name in ("norm1", "norm2")),
    *((name, (torch.nn.Dropout,), ("training", "p")) for name in ("dropout", "dropout1", "dropout2")),
)
_ENCODER_PARAMETERS = tuple(
    (name, classes, ("weight", "bias"))
    for name, classes in (("norm1", _NORM), ("linear1", LINEAR), ("linear2", LINEAR), ("norm2", _NORM))
)

# A sublayer's output and the residual still to be added to it, None when the sublayer's last op has added it already.
Branch = tuple[Tensor, Tensor | None]


def _attention_branch(
    attention: MultiheadAttention,
    dropout: torch.nn.Module,
    x: Tensor,
    memory: Tensor,
    residual: Tensor,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
) -> Branch:
    """residual + dropout(attention(x, memory, memory)), the addition in the output projection where possible."""
    fused = passes_through(dropout)
    output, _ = attention.attend(
        x,
        memory,
        memory,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        need_weights=False,
        is_causal=is_causal,
        residual=residual if fused else None,
    )
    return (output, None) if fused else (dropout(output), residual)


def _feed_forward_branch(layer: torch.nn.Module, dropout: torch.nn.Module, x: Tensor, residual: Tensor) -> Branch:
    """residual + dropout(the layer's feed-forward of x), the addition in the second linear layer where possible."""
    fused = passes_through(dropout)
    output = feed_forward(
        layer.linear1, layer.activation, layer.dropout, layer.linear2, x, residual=residual if fused else None
    )
    return (output, None) if fused else (dropout(output), residual)


def _add(branch: Tensor, residual: Tensor | None) -> Tensor:
    return branch if residual is None else residual + branch


@computes_for(torch.nn.TransformerEncoderLayer)
class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer, constructor, ``state_dict`` and outputs alike, computed by fused ops.

    A submodule with hooks, of another class, or a ``_sa_block`` or ``_ff_block`` overridden in a subclass, is called.
    """

    __init__ = adopting(torch.nn.TransformerEncoderLayer)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """src [len, batch, d_model] ([batch, len, d_model] with batch_first, [len, d_model] unbatched), likewise back.

        Masks as for MultiheadAttention. Raises what MultiheadAttention raises.
        """
        if src.is_nested:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = (src_mask, src_key_padding_mask, is_causal)
        masked = src_mask is not None or src_key_padding_mask is not None or is_causal
        if not masked and small_layers.is_small(src, src.shape[-1]):
            output = self._in_one_call(src)
            if output is not None:
                return output
        if self.norm_first:
            total, normed = add_norm(self.norm2, *self._attention(self.norm1(src), src, *masks))
            return _add(*self._feed_forward(normed, total))
        _, x = add_norm(self.norm1, *self._attention(src, src, *masks))
        _, x = add_norm(self.norm2, *self._feed_forward(x, x))
        return x

    def _in_one_call(self, x: Tensor) -> Tensor | None:
        """The whole layer of a small x, None where a part of it expects to be called or the kernels refuse."""
        settings, learned = plain_members(self, _ENCODER_SETTINGS), plain_members(self, _ENCODER_PARAMETERS)
        if settings is None or learned is None or not keeps(_ENCODER_METHODS, self, TransformerEncoderLayer):
            return None
        shape1, eps1, shape2, eps2, *dropouts = settings
        attention, activation = self._modules["self_attn"], activation_name(self.activation)
        drops = any(training and p > 0.0 for training, p in zip(dropouts[::2], dropouts[1::2], strict=True))
        usual = activation is not None and not drops and shape1 == shape2 == (attention.embed_dim,)
        joint = plain_members(attention, JOINT_PARAMETERS) if usual and attention._is_usual(x) else None
        if joint is None:
            return None
        return small_layers.encoder_layer(
            x,
            *joint,
            *learned,
            heads=attention.num_heads,
            activation=activation,
            eps1=eps1,
            eps2=eps2,
            norm_first=self.norm_first,
        )

    def _attention(self, x: Tensor, residual: Tensor, attn_mask, key_padding_mask, is_causal: bool) -> Branch:
        if overrides(self, "_sa_block", torch.nn.TransformerEncoderLayer) or not is_plain(
            self.self_attn, MultiheadAttention
        ):
            return self._sa_block(x, attn_mask, key_padding_mask, is_causal=is_causal), residual
        return _attention_branch(self.self_attn, self.dropout1, x, x, residual, attn_mask, key_padding_mask, is_causal)

    def _feed_forward(self, x: Tensor, residual: Tensor) -> Branch:
        if overrides(self, "_ff_block", torch.nn.TransformerEncoderLayer):
            return self._ff_block(x), residual
        return _feed_forward_branch(self, self.dropout2, x, residual)


@computes_for(torch.nn.TransformerDecoderLayer)
class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """torch.nn.TransformerDecoderLayer, constructor, ``state_dict`` and outputs alike, computed by fused ops.

    A submodule with hooks, of another class, or a ``_sa_block``, ``_mha_block`` or ``_ff_block`` overridden in a
    subclass, is called.
    """

    __init__ = adopting(torch.nn.TransformerDecoderLayer)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """tgt and memory [len, batch, d_model] ([batch, len, d_model] with batch_first, [len, d_model] unbatched).

        Returns tgt's shape. Masks as for MultiheadAttention. Raises what MultiheadAttention raises.
        """
        if tgt.is_nested or memory.is_nested:
            return super().forward(
                tgt,
                memory,
                tgt_mask,
                memory_mask,
                tgt_key_padding_mask,
                memory_key_padding_mask,
                tgt_is_causal,
                memory_is_causal,
            )
        masks = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        memory_masks = (memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            total, normed = add_norm(self.norm2, *self._self_attention(self.norm1(tgt), tgt, *masks))
            total, normed = add_norm(self.norm3, *self._cross_attention(normed, memory, total, *memory_masks))
            return _add(*self._feed_forward(normed, total))
        _, x = add_norm(self.norm1, *self._self_attention(tgt, tgt, *masks))
        _, x = add_norm(self.norm2, *self._cross_attention(x, memory, x, *memory_masks))
        _, x = add_norm(self.norm3, *self._feed_forward(x, x))
        return x

    def _self_attention(self, x: Tensor, residual: Tensor, attn_mask, key_padding_mask, is_causal: bool) -> Branch:
        if overrides(self, "_sa_block", torch.nn.TransformerDecoderLayer) or not is_plain(
            self.self_attn, MultiheadAttention
        ):
            return self._sa_block(x, attn_mask, key_padding_mask, is_causal), residual
        return _attention_branch(self.self_attn, self.dropout1, x, x, residual, attn_mask, key_padding_mask, is_causal)

    def _cross_attention(
        self, x: Tensor, memory: Tensor, residual: Tensor, attn_mask, key_padding_mask, is_causal: bool
    ) -> Branch:
        if overrides(self, "_mha_block", torch.nn.TransformerDecoderLayer) or not is_plain(
            self.multihead_attn, MultiheadAttention
        ):
            return self._mha_block(x, memory, attn_mask, key_padding_mask, is_causal), residual
        return _attention_branch(
            self.multihead_attn, self.dropout2, x, memory, residual, attn_mask, key_padding_mask, is_causal
        )

    def _feed_forward(self, x: Tensor, residual: Tensor) -> Branch:
        if overrides(self, "_ff_block", torch.nn.TransformerDecoderLayer):
            return self._ff_block(x), residual
        return _feed_forward_branch(self, self.dropout3, x, residual)


@computes_for(torch.nn.TransformerEncoder)
class TransformerEncoder(torch.nn.TransformerEncoder):
    """torch.nn.TransformerEncoder: the layers in turn, then the norm. The layers and the norm stay what they are given
    as; ``bmk.replace_modules`` swaps those that come from torch.nn. Padded positions keep their computed values.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """src as for TransformerEncoderLayer. is_causal None: `mask` is compared with the causal mask."""
        if src.is_nested:
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        is_causal = is_causal_mask(mask, is_causal, _length(src, self.layers[0]))
        output = src
        for layer in self.layers:
            output = layer(output, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=is_causal)
        return output if self.norm is None else self.norm(output)


@computes_for(torch.nn.TransformerDecoder)
class TransformerDecoder(torch.nn.TransformerDecoder):
    """torch.nn.TransformerDecoder: the layers in turn, then the norm. The layers and the norm stay what they are given
    as; ``bmk.replace_modules`` swaps those that come from torch.nn.
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """tgt and memory as for TransformerDecoderLayer. tgt_is_causal None: `tgt_mask` is compared with the causal
        mask.
        """
        if tgt.is_nested or memory.is_nested:
            return super().forward(
                tgt,
                memory,
                tgt_mask,
                memory_mask,
                tgt_key_padding_mask,
                memory_key_padding_mask,
                tgt_is_causal,
                memory_is_causal,
            )
        tgt_is_causal = is_causal_mask(tgt_mask, tgt_is_causal, _length(tgt, self.layers[0]))
        output = tgt
        for layer in self.layers:
            output = layer(
                output,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=tgt_is_causal,
                memory_is_causal=memory_is_causal,
            )
        return output if self.norm is None else self.norm(output)


@computes_for(torch.nn.Transformer)
class Transformer(torch.nn.Transformer):
    """torch.nn.Transformer, made of this module's encoder and decoder. A custom encoder or decoder stays as given."""

    __init__ = adopting(torch.nn.Transformer)


def _length(x: Tensor, layer: torch.nn.Module) -> int:
    """The sequence length of [len, d_model], [batch, len, d_model] (batch_first) or [len, batch, d_model]."""
    return x.size(1 if x.dim() == 3 and layer.self_attn.batch_first else 0)
