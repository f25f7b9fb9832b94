"""The cases of attention_varlen: packed sequences of every length; see cases.py for what a case is."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import functional
from .cases import AttentionCase
from .layouts import random

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class AttentionVarlenCase:
    """One call of attention_varlen. lengths: of each sequence, or (queries, keys); attention: sizes and options, but
    for batch and lengths, which follow from `lengths`; layout: of the packed tensors."""

    name: str
    lengths: tuple[int | tuple[int, int], ...] = (5, 33, 1, 20)
    attention: AttentionCase = AttentionCase("")
    layout: str = "contiguous"
    index_dtype: torch.dtype = torch.int64

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(queries, keys) of every sequence."""
        return [(length, length) if isinstance(length, int) else length for length in self.lengths]

    def inputs(self, dtype: torch.dtype) -> Tensors:
        """The case's tensors; those that are differentiable come first."""
        generator = torch.Generator().manual_seed(20170612)
        q_lens, kv_lens = ([pair[side] for pair in self.pairs] for side in (0, 1))
        most = {"q_len": max(q_lens, default=0), "kv_len": max(kv_lens, default=0)}
        # Mask, slopes, sinks and seed as padded tensors would have them.
        padded = replace(self.attention, batch=len(self.lengths), **most).inputs(dtype)
        kv_heads, value_dim = padded["key"].shape[1], padded["value"].shape[3]
        shapes = {
            "query": (sum(q_lens), self.attention.heads, self.attention.head_dim),
            "key": (sum(kv_lens), kv_heads, self.attention.head_dim),
            "value": (sum(kv_lens), kv_heads, value_dim),
        }
        packed = {name: random(shape, dtype, generator, self.layout) for name, shape in shapes.items()}
        return {
            **packed,
            **{name: x for name, x in padded.items() if name not in shapes},
            "cu_seqlens_q": _starts(q_lens, self.index_dtype),
            "cu_seqlens_k": _starts(kv_lens, self.index_dtype),
        }

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        options = {**self.attention.options(), "return_lse": True, "backend": backend}
        output, lse = functional.attention_varlen(**inputs, **options)
        return {"output": output, "lse": lse}


def _starts(lengths: list[int], dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def _cases() -> list[AttentionVarlenCase]:
    case = AttentionVarlenCase
    options = {
        "causal": {"causal": "top_left"},
        "causal_bottom_right": {"causal": "bottom_right"},
        "window": {"window": (7, 3)},
        "window_causal": {"window": (9, None), "causal": "bottom_right"},
        "scale": {"scale": -0.3},
        "softcap": {"softcap": 1.5},
        "alibi": {"alibi": "heads"},
        "alibi_of_each": {"alibi": "batch"},
        "sinks": {"sinks": True},
        "dropout": {"dropout_p": 0.3},
        "mask_bool": {"mask": "bool"},
        "mask_bool_rows": {"mask": "bool_rows"},
        "mask_float": {"mask": "float"},
        "mask_float_query": {"mask": "float_query"},
        "mask_float_inf": {"mask": "float_inf"},
        **{f"mask_float_{dims}": {"mask": "float", "mask_dims": dims} for dims in ("hqk", "qk", "bk", "bhk")},
        "mask_bool_keys": {"mask": "bool", "mask_dims": "bk"},
        "grouped": {"heads": 6, "kv_heads": 2},
        "multi_query": {"heads": 5, "kv_heads": 1},
        "value_dim": {"value_dim": 19},
        "head_dim_80": {"head_dim": 80},
        "head_dim_129": {"head_dim": 129, "value_dim": 65},
        "head_dim_257": {"head_dim": 257},
    }
    everything = AttentionCase(
        "", heads=4, kv_heads=2, head_dim=40, value_dim=33, mask="float", mask_dims="hqk", causal="bottom_right",
        window=(50, None), softcap=2.5, alibi="batch", sinks=True,
    )  # fmt: skip
    few = AttentionCase("", heads=3, kv_heads=1, causal="bottom_right")
    ragged = (0, 70, 0, (65, 130), (64, 0), (0, 63), 64, 1)  # beside the sizes of tiles, and empty on either side
    return [
        case("plain"),
        *(case(name, attention=AttentionCase("", **fields)) for name, fields in options.items()),
        *(
            case(f"cross_{name}", ((3, 40), (33, 7), (20, 20)), AttentionCase("", **options[name]))
            for name in ("causal", "causal_bottom_right", "window", "mask_float", "dropout")
        ),
        case("one", (17,)),
        case("ones", (1,) * 9, AttentionCase("", heads=4, kv_heads=2, sinks=True)),
        case("no_sequences", ()),
        case("empty_sequences", (0, 5, 0, 0, 9, 0), AttentionCase("", sinks=True, causal="top_left")),
        case("no_keys", ((4, 0), (6, 9), (2, 0)), AttentionCase("", sinks=True)),
        case("no_keys_at_all", ((4, 0), (2, 0))),
        case("no_queries", ((0, 4), (6, 9), (0, 3)), AttentionCase("", mask="float")),
        case("ragged", ragged, AttentionCase("", heads=2, kv_heads=1, head_dim=24, sinks=True, causal="bottom_right")),
        case("ragged_mask", ragged, AttentionCase("", head_dim=24, mask="float", softcap=2.0, dropout_p=0.2)),
        # So few queries each that the heads of one key head share a tile.
        case("grouped_short", ((1, 90), (33, 70), (0, 5), (20, 20), (3, 130)), AttentionCase("", heads=6, kv_heads=2)),
        case("tiles", (63, 64, 65, 127, 129, 144, 145), AttentionCase("", heads=1, head_dim=64)),
        case("one_long_many_short", (700, *range(1, 20)), AttentionCase("", heads=2, head_dim=16, causal="top_left")),
        case("long", (1100, 30), AttentionCase("", heads=1, head_dim=8)),
        # On a device of few multiprocessors their keys are split; the rows of a group's heads share a tile, or more.
        case("few_queries", ((2, 300), (1, 400)), AttentionCase("", heads=1, sinks=True)),
        case("few_queries_grouped", ((2, 300), (3, 130)), replace(few, sinks=True)),
        case("few_queries_but_one", ((70, 90), (1, 9), (1, 70), (2, 5), (1, 1)), replace(few, window=(60, None))),
        case("everything", (70, 1, 33, 130), everything),
        case("everything_dropout", ((70, 90), (5, 2)), replace(everything, dropout_p=0.2, mask="float_query")),
        *(case(layout, layout=layout) for layout in ("heads_inside", "transposed", "strided", "offset")),
        case("int32", index_dtype=torch.int32),
    ]


ATTENTION_VARLEN_CASES = _cases()
