"""The attention kernels with their default launches, for `bigmodel audit` to compile ahead of time.

The launches are those of the launchers themselves, built of tensors without data.
"""

import torch
from torch import Tensor

from .attention_backward import Gradients, gradient_calls, mask_parts
from .attention_forward import forward_calls
from .attention_gradient import Incoming
from .attention_inputs import padded, prepare, view
from .attention_launch import Call, Device
from .attention_weights import weights_call
from .audit_case import AuditCase, specialization

HEAD_DIMS = (64, 128, 256)
# What a typical device of the architecture has: T4, A100, RTX 3090, RTX 4090, H100, B200, RTX 5090.
_MULTIPROCESSORS = {75: 40, 80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
_L2_BYTES = 40 << 20
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH, _HEADS, _LENGTH = 4, 16, 4096
_PLAIN = {"scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}


def audit_cases(arch: int) -> list[AuditCase]:
    """Every kernel of attention and attention_weights as it is launched by default on an architecture (80 is sm_80):
    causal or not at each of HEAD_DIMS, one query on a long row of keys, and the gradient of an additive mask."""
    device = Device(arch, _MULTIPROCESSORS[arch], _L2_BYTES)
    cases = []
    for name, dtype in _DTYPES.items():
        if name == "bf16" and arch < 80:
            continue
        for head_dim in HEAD_DIMS:
            for causal in ("none", "top_left"):
                suffix = "" if causal == "none" else " causal"
                for op, call in _passes(dtype, head_dim, causal, device):
                    if causal == "none" or call.name in ("forward", "grad_key_value", "grad_query"):
                        cases.append(_case(op, f"{call.name}{suffix} d{head_dim}", call, name, head_dim))
            for op, call in (*_one_query(dtype, head_dim, device), *_mask_gradient(dtype, head_dim, device)):
                cases.append(_case(op, f"{call.name} d{head_dim}", call, name, head_dim))
    return cases


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _passes(dtype: torch.dtype, head_dim: int, causal: str, device: Device) -> list[tuple[str, Call]]:
    """Both ops, forward and backward, self-attention of equal lengths."""
    x, lse = _empty(_BATCH, _HEADS, _LENGTH, head_dim, dtype=dtype), _empty(_BATCH, _HEADS, _LENGTH)
    inputs, features = prepare("attention", x, x, x, None, None, None, None, causal=causal, **_PLAIN)
    incoming = Incoming(lse, lse, view(x), view(None), 1.0)
    calls = forward_calls(inputs, features, x, lse, dtype, device)
    grads = Gradients(query=x, key=x, value=x)
    calls += gradient_calls(inputs, features, incoming, "output", (x, x, lse, None), grads, None, device)
    found = [("attention", call) for call in calls]

    inputs, features = prepare("attention_weights", x, x, None, None, None, None, None, causal=causal, **_PLAIN)
    weights = _empty(_BATCH, _HEADS, _LENGTH, _LENGTH, dtype=dtype)
    incoming = Incoming(lse, lse, view(None), view(weights), 1.0)
    grads = Gradients(query=x, key=x, lse=lse)
    calls = [weights_call(inputs, features, lse, weights, False, device)]
    calls += gradient_calls(inputs, features, incoming, "weights", (None, None, lse, None), grads, None, device)
    return found + [("attention_weights", call) for call in calls]


def _one_query(dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """One query per head, eight heads to a group: rows of one tile, keys split among programs, results merged."""
    query, key = (_empty(1, heads, length, head_dim, dtype=dtype) for heads, length in ((16, 1), (2, _LENGTH)))
    inputs, features = prepare("attention", query, key, key, None, None, None, None, causal="none", **_PLAIN)
    calls = forward_calls(inputs, features, query, _empty(1, 16, 1), dtype, device)
    return [("attention", call._replace(name=f"{call.name} one query")) for call in calls]


def _mask_gradient(dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """An additive mask that all batches share."""
    x, lse = _empty(_BATCH, _HEADS, _LENGTH, head_dim, dtype=dtype), _empty(_BATCH, _HEADS, _LENGTH)
    mask = _empty(1, _HEADS, _LENGTH, _LENGTH, dtype=dtype)
    inputs, features = prepare("attention", x, x, x, mask, None, None, None, causal="none", **_PLAIN)
    incoming = Incoming(lse, lse, view(x), view(None), 1.0)
    grads = Gradients(mask=mask)
    parts = mask_parts(inputs, mask, device)
    calls = gradient_calls(inputs, features, incoming, "output", (x, x, lse, None), grads, parts, device)
    return [("attention", call) for call in calls if call.name == "grad_mask"]


def _case(op: str, name: str, call: Call, dtype: str, head_dim: int) -> AuditCase:
    arguments = dict(zip([parameter.name for parameter in call.kernel.params], call.arguments, strict=True))
    dots, exps, loaded = _iteration(call.name.split()[0], op, arguments, head_dim, _DTYPES[dtype].itemsize)
    signature, constexprs, divisible = specialization(call.kernel, arguments)
    return AuditCase(
        op=op,
        name=name,
        kernel=call.kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=divisible,
        num_warps=call.num_warps,
        num_stages=call.num_stages,
        dtype=dtype,
        head_dim=head_dim,
        dots=dots,
        exps=exps,
        bytes_loaded=loaded,
    )


def _iteration(kernel: str, op: str, arguments: dict, head_dim: int, itemsize: int) -> tuple[tuple, int, int]:
    """(products, exponentials, bytes loaded) of one iteration of the inner loop, as AuditCase counts them."""
    if "BLOCK_N" not in arguments:
        return (), 0, 0
    m, n, d = arguments["BLOCK_M"], arguments["BLOCK_N"], padded(head_dim)
    row = head_dim * itemsize
    scores, values, back = (m, n, d), (m, d, n), (n, d, m)
    given = m * n * itemsize  # of attention_weights: the gradient of the weights
    table = {
        ("forward", "attention"): ((scores, values), 2 * n * row),
        ("grad_key_value", "attention"): ((scores, scores, back, back), m * (2 * row + 8)),
        ("grad_query", "attention"): ((scores, scores, values), 2 * n * row),
        ("grad_mask", "attention"): ((scores, scores), 2 * (m + n) * row + 8 * m),
        ("weights", "attention_weights"): ((scores,), (m + n) * row + 4 * m),
        ("grad_key_value", "attention_weights"): ((scores, back), m * (row + 8) + given),
        ("grad_query", "attention_weights"): ((scores, values), n * row + given),
    }
    dots, loaded = table[kernel, op]
    return dots, m * n, loaded
