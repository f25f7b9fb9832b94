"""The attention kernels with their default launches, for `bigmodel audit` to compile ahead of time.

The launches are those of the launchers themselves, built of tensors without data.
"""

from typing import Any

import torch
from torch import Tensor

from .attention_backward import Gradients, gradient_calls, mask_parts
from .attention_forward import forward_calls
from .attention_gradient import Incoming, Terms
from .attention_inputs import Features, Inputs, padded, prepare, view
from .attention_launch import LARGEST_TF32, Call, Device
from .attention_varlen import heads_first, prepare_packed
from .attention_weights import weights_call
from .audit_case import MULTIPROCESSORS, AuditCase, specialization

HEAD_DIMS = (64, 128, 256, 512)
_L2_BYTES = 40 << 20
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH, _HEADS, _LENGTH = 4, 16, 4096
_SEQUENCES = 32  # of packed ones
# Arguments that may be absent, in the order of the schema.
_TENSORS = ("mask", "alibi_slopes", "sinks", "dropout_seed")
_PLAIN = {"scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}
# The passes that have loops over boundary tiles where the call is causal.
_BANDED = ("forward", "grad_key_value", "grad_query")
# The head size at which the short list has what it leaves out at the others.
_TYPICAL = 128


def audit_cases(arch: int, every: bool = False) -> list[AuditCase]:
    """The kernels of attention and attention_weights as they are launched by default on an architecture (80 is sm_80):
    causal at each of HEAD_DIMS and, at 128 features, without a mask, with one query on a long row of keys, with the
    gradient of an additive mask and, in a type of 16 bits, with each option (dropout at 64 too); fp16, where there is
    bf16, only attention of up to 128 features, because the code is all but the same; TF32 causal and with the gradient
    of an additive mask. Of attention_varlen in a type of 16 bits those of up to 128 features, causal. every: all of
    these in every dtype and at every size, but for the options other than masks and TF32; and what takes the most
    registers at once, in a type of 16 bits up to 128 features and in TF32 with the gradient of a mask."""
    device = Device(arch, MULTIPROCESSORS[arch], _L2_BYTES)
    cases = []
    for name, dtype in _DTYPES.items():
        if name == "bf16" and arch < 80:
            continue
        alike = name == "fp16" and arch >= 80 and not every
        for head_dim in HEAD_DIMS[:2] if alike else HEAD_DIMS:
            calls = [
                (op, call._replace(name=f"{call.name} causal"))
                for op, call in _passes(dtype, head_dim, "top_left", device)
                if call.name in _BANDED and not (alike and op == "attention_weights")
            ]
            if not alike:
                plain = _passes(dtype, head_dim, "none", device)
                plain += [*_one_query(dtype, head_dim, device), *_mask_gradient(dtype, head_dim, device)]
                calls += [each for each in plain if every or head_dim == _TYPICAL or each[1].name == "weights"]
            options = ()
            if name == ("bf16" if arch >= 80 else "fp16"):
                options = _OPTIONS if head_dim == _TYPICAL else ("causal dropout",) if head_dim < _TYPICAL else ()
            for option in (*options, *(each for each in _MASKS if every and each not in options)):
                calls += _with_option(option, dtype, head_dim, device)
            if every or (options and head_dim <= _TYPICAL):
                calls += _packed(dtype, head_dim, device)
            if every and options and head_dim <= _TYPICAL:
                calls += _combined(dtype, head_dim, device)
            cases += [_case(op, f"{call.name} d{head_dim}", call, name, head_dim) for op, call in calls]
    for head_dim in (size for size in HEAD_DIMS if arch >= 80 and size <= LARGEST_TF32):
        calls = [
            (op, call._replace(name=f"{call.name} causal" if call.name in _BANDED else call.name))
            for op, call in _passes(torch.float32, head_dim, "top_left", device, "tf32")
            if call.name != "row_terms"
        ]
        calls += _mask_gradient(torch.float32, head_dim, device, "tf32")
        if every:
            calls += _mask_gradient(torch.float32, head_dim, device, "tf32", "causal dropout")
        cases += [_case(op, f"{call.name} d{head_dim}", call, "tf32", head_dim) for op, call in calls]
    return cases


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _prepared(precision: str, *arguments, **options) -> tuple[Inputs, Features]:
    """prepare, with fp32 multiplied as the precision says, whatever torch's switch says."""
    inputs, features = prepare(*arguments, **(_PLAIN | options))
    return inputs, features._replace(precision=precision)


def _passes(
    dtype: torch.dtype, head_dim: int, causal: str, device: Device, precision: str = "ieee"
) -> list[tuple[str, Call]]:
    """Both ops, forward and backward, self-attention of equal lengths."""
    x, lse = _empty(_BATCH, _HEADS, _LENGTH, head_dim, dtype=dtype), _empty(_BATCH, _HEADS, _LENGTH)
    inputs, features = _prepared(precision, "attention", x, x, x, None, None, None, None, causal=causal)
    calls = _forward_and_backward(inputs, features, x, lse, device)
    found = [("attention", call) for call in calls]

    inputs, features = _prepared(precision, "attention_weights", x, x, None, None, None, None, None, causal=causal)
    weights = _empty(_BATCH, _HEADS, _LENGTH, _LENGTH, dtype=dtype)
    incoming = Incoming(Terms(lse, lse), view(None), view(weights))
    grads = Gradients(query=x, key=x, lse=lse)
    calls = [weights_call(inputs, features, lse, weights, False, device)]
    calls += gradient_calls(inputs, features, incoming, "weights", (None, None, lse, None), grads, None, device)
    return found + [("attention_weights", call) for call in calls]


def _forward_and_backward(
    inputs: Inputs, features: Features, query: Tensor, lse: Tensor, device: Device, grad_mask: Tensor | None = None
) -> list[Call]:
    """Attention's launches; the output is of query's shape. grad_mask: of the mask's shape, if it is to be computed."""
    incoming = Incoming(Terms(lse, lse), view(query), view(None))
    grads = Gradients(query, inputs.key.data, inputs.value.data, grad_mask, sinks=inputs.sinks.data)
    parts = None if grad_mask is None else mask_parts(inputs, features, grad_mask, device)
    calls = forward_calls(inputs, features, query, lse, query.dtype, device)
    terms = (query, query, lse, None)
    return calls + gradient_calls(inputs, features, incoming, "output", terms, grads, parts, device)


def _one_query(dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """One query per head, eight heads to a group: rows of one tile, keys split among programs, results merged."""
    query, key = (_empty(1, heads, length, head_dim, dtype=dtype) for heads, length in ((16, 1), (2, _LENGTH)))
    inputs, features = _prepared("ieee", "attention", query, key, key, None, None, None, None, causal="none")
    calls = forward_calls(inputs, features, query, _empty(1, 16, 1), dtype, device)
    return [("attention", call._replace(name=f"{call.name} one query")) for call in calls]


def _packed(dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """As many tokens as in the other calls, packed, of any number of sequences: causal, forward and backward."""
    inputs, features, x, lse = _of_packed(dtype, head_dim)
    calls = _forward_and_backward(inputs, features, x, lse, device)
    different = {call.name: call for call in calls if call.name != "row_terms"}  # which is that of attention
    return [("attention_varlen", call._replace(name=f"{name} packed causal")) for name, call in different.items()]


def _of_packed(
    dtype: torch.dtype, head_dim: int, group: int = 1, queries: int = _BATCH * _LENGTH, **given
) -> tuple[Inputs, Features, Tensor, Tensor]:
    """(inputs, features, query, lse) of a causal call of packed sequences, with tensors and options that are given."""
    query = _empty(queries, _HEADS, head_dim, dtype=dtype)
    key = _empty(_BATCH * _LENGTH, _HEADS // group, head_dim, dtype=dtype)
    starts = _empty(_SEQUENCES + 1, dtype=torch.int32)
    others = (given.pop(name, None) for name in _TENSORS)
    given = {"causal": "top_left"} | given
    inputs, features = prepare_packed("attention_varlen", query, key, key, starts, starts, *others, **given)
    return inputs, features, heads_first(query, _SEQUENCES), _empty(_HEADS, queries).expand(_SEQUENCES, -1, -1)


def _of_batches(
    dtype: torch.dtype, head_dim: int, group: int, queries: int, **given
) -> tuple[Inputs, Features, Tensor, Tensor]:
    """The same of sequences of equal lengths."""
    query = _empty(_BATCH, _HEADS, queries // _BATCH, head_dim, dtype=dtype)
    key = _empty(_BATCH, _HEADS // group, _LENGTH, head_dim, dtype=dtype)
    others = (given.pop(name, None) for name in _TENSORS)
    inputs, features = _prepared("ieee", "attention", query, key, key, *others, **({"causal": "top_left"} | given))
    return inputs, features, query, _empty(_BATCH, _HEADS, queries // _BATCH)


def _combined(dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """What takes the most registers at once: causal calls with four query heads to a key head, plain and with dropout
    and a mask, of packed sequences and, where these are not all, of others. Few: eight queries of each sequence."""
    gradients = (*_BANDED[1:], "grad_mask")
    kinds = (
        ("attention", "", _of_batches, _BATCH * _LENGTH, ("grad_key_value", "grad_mask")),
        ("attention", "few ", _of_batches, 8 * _BATCH, ("forward",)),
        ("attention_varlen", "packed ", _of_packed, _BATCH * _LENGTH, ("forward", *gradients)),
        ("attention_varlen", "packed few ", _of_packed, 8 * _SEQUENCES, ("forward",)),
    )
    found = []
    for mask in (None, torch.bool, torch.float32):
        for op, kind, prepared, queries, passes in kinds:
            shape = (_BATCH, _HEADS, queries // _BATCH, _LENGTH)
            if prepared is _of_packed:
                shape = (_SEQUENCES, _HEADS, queries // _SEQUENCES, _LENGTH)
            given = {} if mask is None else {"mask": _empty(*shape, dtype=mask)} | _OPTIONS["causal dropout"]()
            inputs, features, query, lse = prepared(dtype, head_dim, 4, queries, **given)
            grad_mask = inputs.mask.data if mask == torch.float32 else None
            calls = _forward_and_backward(inputs, features, query, lse, device, grad_mask)
            what = "" if mask is None else f" dropout {'bool' if mask == torch.bool else 'additive'} mask"
            name = f"{kind}causal grouped{what}"
            found += [(op, call._replace(name=f"{call.name} {name}")) for call in calls if call.name in passes]
    return found


def _mask_gradient(
    dtype: torch.dtype, head_dim: int, device: Device, precision: str = "ieee", option: str | None = None
) -> list[tuple[str, Call]]:
    """An additive mask that all batches share. option: of _OPTIONS."""
    x, lse = _empty(_BATCH, _HEADS, _LENGTH, head_dim, dtype=dtype), _empty(_BATCH, _HEADS, _LENGTH)
    mask = _empty(1, _HEADS, _LENGTH, _LENGTH, dtype=dtype)
    given = {"mask": mask, "causal": "none"} | (_OPTIONS[option]() if option else {})
    tensors = [given.pop(name, None) for name in _TENSORS]
    inputs, features = _prepared(precision, "attention", x, x, x, *tensors, **given)
    incoming = Incoming(Terms(lse, lse), view(x), view(None))
    grads = Gradients(mask=mask)
    parts = mask_parts(inputs, features, mask, device)
    calls = gradient_calls(inputs, features, incoming, "output", (x, x, lse, None), grads, parts, device)
    name = f"grad_mask {option}" if option else "grad_mask"
    return [("attention", call._replace(name=name)) for call in calls if call.name == "grad_mask"]


def _mask(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"mask": _empty(_BATCH, _HEADS, _LENGTH, _LENGTH, dtype=dtype)}


# Masks are of their own size for every batch and head; the additive one is fp32, whose tiles are the largest that are
# loaded ahead.
_MASKS = {"bool mask": lambda: _mask(torch.bool), "additive mask": lambda: _mask(torch.float32)}
_OPTIONS = {
    "softcap": lambda: {"softcap": 30.0},
    # Whose random numbers take the most registers, as causal calls do, too.
    "causal dropout": lambda: {"dropout_seed": _empty(1, dtype=torch.int64), "dropout_p": 0.1, "causal": "top_left"},
    "alibi": lambda: {"alibi_slopes": _empty(_HEADS)},
    "sinks": lambda: {"sinks": _empty(_HEADS)},
    "window": lambda: {"window_left": 512, "window_right": 512},
    **_MASKS,
}


def _with_option(option: str, dtype: torch.dtype, head_dim: int, device: Device) -> list[tuple[str, Call]]:
    """Attention with one option, forward and backward: the kernels that it changes."""
    x, lse = _empty(_BATCH, _HEADS, _LENGTH, head_dim, dtype=dtype), _empty(_BATCH, _HEADS, _LENGTH)
    given = (_OPTIONS | _MASKS)[option]()
    tensors = (given.pop(name, None) for name in _TENSORS)
    inputs, features = _prepared("ieee", "attention", x, x, x, *tensors, **({"causal": "none"} | given))
    calls = _forward_and_backward(inputs, features, x, lse, device)
    changed = ("forward", "grad_sinks") if option == "sinks" else _BANDED
    return [("attention", call._replace(name=f"{call.name} {option}")) for call in calls if call.name in changed]


def _case(op: str, name: str, call: Call, dtype: str, head_dim: int) -> AuditCase:
    arguments = dict(zip([parameter.name for parameter in call.kernel.params], call.arguments, strict=True))
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
        max_registers=call.max_registers,
        dtype=dtype,
        head_dim=head_dim,
        **_iteration(call.name, op, arguments, head_dim),
    )


def _iteration(name: str, op: str, arguments: dict, head_dim: int) -> dict[str, Any]:
    """Products, exponentials and bytes of one iteration of the inner loop, as AuditCase counts them."""
    if "BLOCK_N" not in arguments:
        return {}
    kernel = name.split()[0]
    m, n, d = arguments["BLOCK_M"], arguments["BLOCK_N"], padded(head_dim)
    itemsize = arguments["inputs"].query.data.element_size()
    row = head_dim * itemsize
    scores, values, back = (m, n, d), (m, d, n), (n, d, m)
    # The weights of attention_weights, their gradient and the mask's: each tile is read or written by one block.
    tile = m * n * itemsize
    op = "attention" if op == "attention_varlen" else op  # whose kernels are the same
    table = {
        ("forward", "attention"): ((scores, values), 2 * n * row, 0),
        ("grad_key_value", "attention"): ((scores, scores, back, back), m * (2 * row + 8), 0),
        ("grad_query", "attention"): ((scores, scores, values), 2 * n * row, 0),
        ("grad_mask", "attention"): ((scores, scores), 2 * (m + n) * row + 8 * m, tile // _BATCH),
        ("weights", "attention_weights"): ((scores,), (m + n) * row + 4 * m, tile),
        ("grad_key_value", "attention_weights"): ((scores, back), m * (row + 8), tile),
        ("grad_query", "attention_weights"): ((scores, values), n * row, tile),
    }
    dots, loaded, alone = table[kernel, op]
    if "one query" in name:
        loaded, alone = 0, loaded
    mask = arguments["inputs"].mask
    if mask.data is not None:
        alone += m * n * mask.data.element_size() // (1 if mask.batch else _BATCH)
    inner = m * n * head_dim if arguments["FEATURES"].chunk else 0
    return {"dots": dots, "exps": m * n, "bytes_loaded": loaded, "bytes_alone": alone, "inner_products": inner}
