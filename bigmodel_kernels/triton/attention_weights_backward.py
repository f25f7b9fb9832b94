"""attention_weights_backward: the gradient kernels of attention, started from the gradient of the weights."""

from torch import Tensor

from .attention_backward import Gradients, empty_mask_gradient, empty_row_terms, run_gradients, zero
from .attention_gradient import Incoming, Terms
from .attention_inputs import broadcast_view, empty_in_order_of, prepare, view


def attention_weights_backward(
    grad_weights: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    *,
    causal: str = "none",
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    average_heads: bool = False,
    output_mask: tuple[bool, bool, bool, bool] = (True, True, True, False),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, lse and mask, those that output_mask asks for and that exist.

    Shapes and options are those of attention_weights; grad_weights is of the shape of its result. A gradient is of the
    shape and dtype of its tensor; one that is not computed comes back with zero elements.
    Raises: ValueError for shapes, dtypes or options that do not fit together.
    """
    inputs, features = prepare(
        "attention_weights_backward",
        query,
        key,
        None,
        mask,
        alibi_slopes,
        None,
        dropout_seed,
        causal=causal,
        scale=scale,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        dropout_p=dropout_p,
    )
    grads = Gradients(
        query=empty_in_order_of(query, query.shape[3]) if output_mask[0] else None,
        key=empty_in_order_of(key, key.shape[3]) if output_mask[1] else None,
        lse=lse.new_empty(lse.shape) if output_mask[2] else None,
        mask=empty_mask_gradient(mask, output_mask[3]),
    )
    if lse.numel() == 0 or key.shape[2] == 0:
        zero(grads)
    else:
        # The gradient of a mean over the heads is the same for each of them: a stride of 0, and a share of 1 / heads.
        given = broadcast_view(grad_weights, (*query.shape[:3], key.shape[2]))
        scale_of_given = 1 / query.shape[1] if average_heads else 1.0
        incoming = Incoming(Terms(*empty_row_terms(query), scale_of_given), view(None), given)
        run_gradients(inputs, features, incoming, "weights", (None, None, lse, None), grads)
    nothing = query.new_empty(0)
    return tuple(nothing if grad is None else grad for grad in (grads.query, grads.key, grads.lse, grads.mask))
