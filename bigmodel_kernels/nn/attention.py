"""torch.nn.MultiheadAttention computed by the fused attention ops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_kernels import functional
from bigmodel_kernels.functional import small_layers
from bigmodel_kernels.functional.attention_with_weights import attention_with_weights
from bigmodel_kernels.nn.counterparts import computes_for
from bigmodel_kernels.nn.fusion import LINEAR, apply_linear, keeps
from bigmodel_kernels.nn.masks import check_mask_types, merged_mask
from bigmodel_kernels.nn.members import plain_members

# The methods that one call for all of self-attention leaves out.
_PARTS = frozenset(("_check", "_project", "_projected", "_heads_first", "_heads_last", "_attention"))

# Weight and bias of the projections of query, key and value as one, and of the output.
JOINT_PARAMETERS = ((None, (), ("in_proj_weight", "in_proj_bias")), ("out_proj", LINEAR, ("weight", "bias")))


@computes_for(torch.nn.MultiheadAttention)
class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention, constructor, ``state_dict`` and outputs alike, computed by fused attention.

    The maths is softmax(Q K^T / sqrt(head_dim)) V per head (Vaswani et al., 2017; https://arxiv.org/abs/1706.03762).
    ``need_weights=True`` stays fused: without a gradient the CPU computes output and weights together, elsewhere the
    weights come from a second pass over query, key and the log-sum-exp; their average over heads never forms the
    weights per head.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `query` to `key` and `value`.

        query [q_len, batch, embed_dim], key [kv_len, batch, kdim], value [kv_len, batch, vdim]; batch comes first with
        ``batch_first=True``, and is left out of all three when unbatched. key_padding_mask [batch, kv_len] and
        attn_mask [q_len, kv_len] or [batch * num_heads, q_len, kv_len] are boolean (True = masked out) or additive.
        is_causal says that attn_mask, which must be given too, is the causal mask; a wrong hint gives wrong results.

        Returns the output, in the query's layout, and the weights [batch, q_len, kv_len] (averaged over heads) or
        [batch, num_heads, q_len, kv_len], or None with ``need_weights=False``. A query that may attend to no key gets
        zero weights. In training the weights are those after dropout.

        Raises AssertionError or RuntimeError, as torch does, for shapes or dtypes that do not fit.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        return self.attend(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """forward() for tensors that are not nested, with `residual`, shaped as the output, added to the output."""
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        alone = query is key and key is value and not masked and not need_weights
        if alone and small_layers.is_small(query, self.embed_dim) and self._is_usual(query):
            learned = plain_members(self, JOINT_PARAMETERS)
            if learned is not None:
                output = small_layers.self_attention(query, *learned, residual, self.num_heads)
                if output is not None:
                    return output, None
        self._check(query, key, value, key_padding_mask, attn_mask, is_causal)
        batched = query.dim() == 3
        extra_keys = (self.bias_k is not None) + self.add_zero_attn

        q, k, v = (self._heads_first(projected) for projected in self._project(query, key, value))
        q_len, kv_len = q.size(2), k.size(2)
        if extra_keys:
            k, v = self._with_extra_keys(k, self.bias_k), self._with_extra_keys(v, self.bias_v)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]

        # Where torch itself goes by the hint we do, extra keys included. Elsewhere it reads the mask, and the hint is
        # believed where a right hint gives the same result: it saves reading, or merging, the mask.
        torch_goes_by_hint = key_padding_mask is None and not need_weights
        causal = is_causal and (torch_goes_by_hint or (q_len == kv_len and not extra_keys))
        if causal:
            attn_mask = None
        self._check_mask_shapes(attn_mask, key_padding_mask, q.size(0), q_len, kv_len)
        mask = merged_mask(attn_mask, key_padding_mask, heads=self.num_heads, extra_keys=extra_keys)

        output, weights = self._attention(q, k, v, need_weights, average_attn_weights, mask=mask, causal=causal)
        if need_weights and not batched:
            weights = weights.squeeze(0)
        return apply_linear(self.out_proj, self._heads_last(output, batched), residual), weights

    def _is_usual(self, query: Tensor) -> bool:
        """Whether one call may compute all of self-attention, if the output projection is plain: no option of the rare
        ones, no dropout now, and no method replaced that expects to be called."""
        return (
            self._qkv_same_embed_dim
            and self.bias_k is None
            and not self.add_zero_attn
            and (self.batch_first or query.dim() == 2)
            and not (self.training and self.dropout > 0.0)
            and keeps(_PARTS, self, MultiheadAttention)
        )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """q, k and v, each [..., num_heads, head_dim] in the layout of its input: views of one projection per input."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            return self._projected(query, weight, bias, 3)
        b_q, b_k, b_v = (None,) * 3 if bias is None else bias.chunk(3)
        if not self._qkv_same_embed_dim:
            w_q, w_k, w_v = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif key is value:
            w_q, w_kv = weight.split([self.embed_dim, 2 * self.embed_dim])
            b_kv = None if bias is None else bias[self.embed_dim :]
            return *self._projected(query, w_q, b_q, 1), *self._projected(key, w_kv, b_kv, 2)
        else:
            w_q, w_k, w_v = weight.chunk(3)
        each = ((query, w_q, b_q), (key, w_k, b_k), (value, w_v, b_v))
        return [self._projected(*operands, 1)[0] for operands in each]

    def _projected(self, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int) -> Sequence[Tensor]:
        """One projection [..., parts * embed_dim] as views [..., num_heads, head_dim], one per part."""
        try:
            packed = functional.linear(x, weight, bias)
        except ValueError:  # dtypes, say, that do not fit each other: torch's error is raised by torch
            packed = torch.nn.functional.linear(x, weight, bias)
        return packed.view(*packed.shape[:-1], parts, self.num_heads, self.head_dim).unbind(-3)

    def _heads_first(self, x: Tensor) -> Tensor:
        """A view [batch, num_heads, len, head_dim] of [len, num_heads, head_dim] with the batch where torch puts it."""
        if x.dim() == 3:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _heads_last(self, x: Tensor, batched: bool) -> Tensor:
        """[batch, num_heads, len, head_dim] to the query's layout, heads joined."""
        if not batched:
            return x[0].transpose(0, 1).flatten(-2)
        return (x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1, 3)).flatten(-2)

    def _with_extra_keys(self, x: Tensor, learned: Tensor | None) -> Tensor:
        """Keys (or values) followed by the learned one of add_bias_kv and the zero one of add_zero_attn."""
        extra = []
        if learned is not None:
            extra.append(learned.view(1, self.num_heads, 1, self.head_dim).to(x.dtype))
        if self.add_zero_attn:
            extra.append(x.new_zeros(1, self.num_heads, 1, self.head_dim))
        return torch.cat([x, *(key.expand(x.size(0), -1, -1, -1) for key in extra)], dim=2)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool, average: bool, **options
    ) -> tuple[Tensor, Tensor | None]:
        """The heads' outputs, and the attention weights if needed, after one and the same dropout."""
        drops_all = self.training and self.dropout == 1.0  # the ops scale by 1 / (1 - p) and do not take p = 1
        if self.training and self.dropout > 0.0 and not drops_all:
            seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=q.device)
            options |= {"dropout_p": self.dropout, "dropout_seed": seed}
        try:
            if need_weights and not drops_all and "dropout_p" not in options:
                both = attention_with_weights(q, k, v, average_heads=average, **options)
                if both is not None:
                    return both
            output, lse = functional.attention(q, k, v, return_lse=True, **options)
        except ValueError as error:  # the mask's dtype
            raise RuntimeError(*error.args) from None
        weights = functional.attention_weights(q, k, lse, average_heads=average, **options) if need_weights else None
        if drops_all:
            output, weights = output * 0.0, None if weights is None else weights * 0.0
        return output, weights

    def _check(self, query, key, value, key_padding_mask, attn_mask, is_causal) -> None:
        torch.nn.functional._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        check_mask_types(attn_mask, key_padding_mask)
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )
        if query.size(-1) != self.embed_dim:
            raise AssertionError(f"was expecting embedding dimension of {self.embed_dim}, but got {query.size(-1)}")
        if self._qkv_same_embed_dim and key.shape != value.shape:
            raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
        if (key.size(-1), value.size(-1)) != (self.kdim, self.vdim):
            raise (RuntimeError if self._qkv_same_embed_dim else AssertionError)(
                f"[multihead_attention] key and value have {key.size(-1)} and {value.size(-1)} features: expected kdim "
                f"{self.kdim} and vdim {self.vdim}"
            )
        if key.shape[:-1] != value.shape[:-1]:
            raise AssertionError(
                f"key's sequence and batch dims {key.shape[:-1]} do not match value's {value.shape[:-1]}"
            )
        batch_dim = 0 if self.batch_first else 1
        if query.dim() == 3 and query.size(batch_dim) != key.size(batch_dim):
            raise RuntimeError(
                f"[multihead_attention] query has batch size {query.size(batch_dim)}, key {key.size(batch_dim)}: "
                "they must be equal"
            )

    def _check_mask_shapes(self, attn_mask, key_padding_mask, batch: int, q_len: int, kv_len: int) -> None:
        if attn_mask is not None:
            expected = (q_len, kv_len) if attn_mask.dim() == 2 else (batch * self.num_heads, q_len, kv_len)
            if attn_mask.shape != expected:
                raise RuntimeError(
                    f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {expected}."
                )
        if key_padding_mask is not None and key_padding_mask.shape != (batch, kv_len):
            raise AssertionError(
                f"Expected key_padding_mask.shape to be {(batch, kv_len)}, but got {tuple(key_padding_mask.shape)}"
            )
