"""The cases of rotary and linear_cross_entropy; see cases.py for what a case is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import functional
from .layouts import random

Tensors = dict[str, Tensor | None]


@dataclass(frozen=True)
class RotaryCase:
    """One call of rotary. positions: None, "shared" [length], "each" [batch, length], "tokens": cos, sin by token."""

    name: str
    batch: int = 2
    heads: int = 3
    kv_heads: int | None = 2
    length: int = 17
    head_dim: int = 32
    rotary_dim: int | None = None
    interleaved: bool = False
    inverse: bool = False
    positions: str | None = None
    float32_tables: bool = False
    layout: str = "contiguous"
    table_layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(20170612)
        pairs = (self.head_dim if self.rotary_dim is None else self.rotary_dim) // 2
        rows = self.length + 23
        shape = (self.batch, self.length, pairs) if self.positions == "tokens" else (rows, pairs)
        wide = torch.float32 if self.float32_tables else dtype
        angles = [random(shape, torch.float64, generator, self.table_layout) for _ in range(2)]
        tensors = {
            "query": random((self.batch, self.heads, self.length, self.head_dim), dtype, generator, self.layout),
            "key": None,
            "cos": angles[0].cos().to(wide),
            "sin": angles[1].sin().to(wide),
        }
        if self.kv_heads is not None:
            size = (self.batch, self.kv_heads, self.length, self.head_dim)
            tensors["key"] = random(size, dtype, generator, self.layout)
        if self.positions in ("shared", "each"):
            size = (self.length,) if self.positions == "shared" else (self.batch, self.length)
            tensors["positions"] = torch.randint(0, rows, size, generator=generator)
        return tensors

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        options = {"interleaved": self.interleaved, "inverse": self.inverse}
        query, key = functional.rotary(**inputs, **options, backend=backend)
        return {"query": query} | ({} if key is None else {"key": key})


@dataclass(frozen=True)
class LinearCrossEntropyCase:
    """One call of linear_cross_entropy. ignored: "some" rows, "all" of them, or None."""

    name: str
    leading: tuple[int, ...] = (7,)
    width: int = 33
    vocabulary: int = 65
    bias: bool = True
    ignored: str | None = "some"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    reduction: str = "none"
    scale: float = 1.0
    layout: str = "contiguous"
    weight_layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(20170612)
        weight_scale = self.scale * self.width**-0.5
        target = torch.randint(0, self.vocabulary, self.leading, generator=generator)
        if self.ignored == "some":
            target[torch.rand(self.leading, generator=generator) > 0.7] = self.ignore_index
        elif self.ignored == "all":
            target.fill_(self.ignore_index)
        shape = (self.vocabulary, self.width)
        return {
            "hidden": random((*self.leading, self.width), dtype, generator, self.layout),
            "weight": random(shape, dtype, generator, self.weight_layout, weight_scale),
            "target": target,
            "bias": random((self.vocabulary,), dtype, generator) if self.bias else None,
        }

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        names = ("ignore_index", "label_smoothing", "z_loss", "softcap", "reduction")
        options = {name: getattr(self, name) for name in names}
        return {"loss": functional.linear_cross_entropy(**inputs, **options, backend=backend)}


def _rotary() -> list[RotaryCase]:
    case = RotaryCase
    both = [
        dict(name=f"{name}{'_interleaved' if interleaved else ''}", interleaved=interleaved, **fields)
        for interleaved in (False, True)
        for name, fields in {
            "plain": {},
            "one": {"batch": 1, "heads": 1, "kv_heads": 1, "length": 1, "head_dim": 2},
            "no_key": {"kv_heads": None},
            "pairs_5": {"head_dim": 10},
            "partial": {"head_dim": 37, "rotary_dim": 14},
            "head_dim_80": {"head_dim": 80, "length": 33},
            "head_dim_258": {"head_dim": 258, "batch": 1, "rotary_dim": 254},
            "shared_positions": {"positions": "shared"},
            "positions_of_each": {"positions": "each", "inverse": True},
            "tokens": {"positions": "tokens", "rotary_dim": 24},
            "inverse": {"inverse": True},
            "float32_tables": {"float32_tables": True},
            "heads_inside": {"layout": "heads_inside"},
            "transposed": {"layout": "transposed", "head_dim": 20},
            "strided": {"layout": "strided", "rotary_dim": 22},
            "offset": {"layout": "offset", "table_layout": "offset"},
            "table_transposed": {"table_layout": "transposed", "positions": "shared"},
        }.items()
    ]
    return [
        *(case(**each) for each in both),
        case("zero_batch", batch=0),
        case("zero_length", length=0, positions="shared"),
        case("zero_heads", heads=0),
    ]


def _linear_cross_entropy() -> list[LinearCrossEntropyCase]:
    case = LinearCrossEntropyCase
    sizes = [
        (1, 1, 1),
        (1, 64, 70),
        (3, 7, 5),
        (17, 16, 257),
        (40, 64, 128),
        (65, 127, 1200),
        (97, 20, 2500),
        (64, 40, 20000),
    ]
    return [
        *(case(f"{m}x{k}x{n}", leading=(m,), width=k, vocabulary=n) for m, k, n in sizes),
        case("no_bias", bias=False),
        case("none_ignored", ignored=None),
        case("all_ignored", ignored="all"),
        case("ignore_index", ignore_index=3, leading=(40,)),
        case("label_smoothing", label_smoothing=0.1, leading=(30,)),
        case("label_smoothing_one", label_smoothing=1.0),
        case("z_loss", z_loss=0.3, leading=(30,)),
        case("softcap", softcap=2.0, scale=3.0, leading=(30,)),
        case("large_logits", scale=60.0, leading=(30,)),
        case("mean", reduction="mean", leading=(2, 9)),
        case("mean_all_ignored", reduction="mean", ignored="all"),
        case("sum", reduction="sum"),
        case("three_dimensions", leading=(3, 5), vocabulary=40),
        case("one_dimension", leading=(), ignored=None),
        case("zero_rows", leading=(0,)),
        case("zero_batch_mean", leading=(0, 4), reduction="mean"),
        case("transposed", layout="transposed", leading=(20,)),
        case("strided", layout="strided", leading=(3, 10)),
        case("offset", layout="offset", weight_layout="offset", leading=(20,)),
        case("weight_transposed", weight_layout="transposed", leading=(20,)),
        case("weight_strided", weight_layout="strided", leading=(20,), bias=False),
        case(
            "everything",
            leading=(5, 11),
            width=70,
            vocabulary=900,
            label_smoothing=0.2,
            z_loss=0.01,
            softcap=5.0,
            scale=2.0,
            reduction="mean",
        ),
    ]


ROTARY_CASES = _rotary()
LINEAR_CROSS_ENTROPY_CASES = _linear_cross_entropy()
