"""The cases of attention_decode: ragged lengths, pages of any size, every cache dtype. As cases.py has them for the
other ops, but for the caches, which a call writes to: `run` gives each call its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import functional
from .layouts import random

Tensors = dict[str, Tensor]
CACHES = ("key_cache", "value_cache", "key_scales", "value_scales")


@dataclass(frozen=True)
class AttentionDecodeCase:
    """One call of attention_decode. lengths: keys of each sequence before it; new: whether the call appends its own;
    cache_dtype: None for the query's; page_size: None for contiguous caches; layout: of query and the new rows;
    heads_inside: contiguous caches as [batch, capacity, kv_heads, dim]; evicted: pages that no window reaches are -1 in
    the block table; scale_of_values: of the cached and the new ones."""

    name: str
    lengths: tuple[int, ...] = (5, 33)
    heads: int = 2
    kv_heads: int = 2
    q_len: int = 1
    head_dim: int = 32
    value_dim: int | None = None
    cache_dtype: torch.dtype | None = None
    page_size: int | None = None
    new: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    layout: str = "contiguous"
    heads_inside: bool = False
    index_dtype: torch.dtype = torch.int64
    evicted: bool = False
    scale_of_values: float = 1.0

    def inputs(self, dtype: torch.dtype) -> Tensors:
        """The case's tensors. What no call may read is NaN, or a page that does not exist."""
        generator = torch.Generator().manual_seed(20170612)
        cache_dtype = dtype if self.cache_dtype is None else self.cache_dtype
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        batch = len(self.lengths)
        tensors = {
            "query": random((batch, self.heads, self.q_len, self.head_dim), dtype, generator, self.layout),
            "cache_lengths": torch.tensor(self.lengths, dtype=self.index_dtype),
        }
        places = self._places(generator)
        if self.page_size is not None:
            tensors["block_table"] = places.to(self.index_dtype)
        for name, features in (("key", self.head_dim), ("value", value_dim)):
            tensors |= self._cache(name, features, cache_dtype, places, generator)
            if self.new:
                size = self.scale_of_values if name == "value" else 1.0
                rows = random((batch, self.kv_heads, self.q_len, features), dtype, generator, self.layout, size)
                if cache_dtype.is_floating_point:  # exact in the cache too, so that float64 truth holds the same rows
                    rows.copy_(rows.to(cache_dtype).to(dtype).to(cache_dtype).to(dtype))
                tensors[f"new_{name}"] = rows
        if self.sinks:
            tensors["sinks"] = random((self.heads,), torch.float32, generator)
        return tensors

    @property
    def _capacity(self) -> int:
        """Room for all, and a little more."""
        return max(self.lengths, default=0) + (self.q_len if self.new else 0) + 3

    def _places(self, generator: torch.Generator) -> Tensor:
        """The block table; -1 where a sequence needs no page. Without pages nothing."""
        if self.page_size is None:
            return torch.empty(0)
        most = -(-self._capacity // self.page_size)
        table = torch.randperm(len(self.lengths) * most + 2, generator=generator)[: len(self.lengths) * most]
        table = table.reshape(len(self.lengths), most)
        for b, length in enumerate(self.lengths):
            total = length + (self.q_len if self.new else 0)
            table[b, -(-total // self.page_size) :] = -1
            if self.evicted:
                table[b, : max(total - self.q_len - self.window, 0) // self.page_size] = -1
        return table

    def _cache(
        self, name: str, features: int, dtype: torch.dtype, places: Tensor, generator: torch.Generator
    ) -> Tensors:
        batch, length = len(self.lengths), self._capacity
        shape = (batch, self.kv_heads, length) if self.page_size is None else (
            batch * places.shape[1] + 2, self.kv_heads, self.page_size
        )  # fmt: skip
        filled = torch.zeros(shape[0], 1, shape[2], dtype=torch.bool)
        for b, count in enumerate(self.lengths):
            for j in range(count):
                page = b if self.page_size is None else int(places[b, j // shape[2]])
                if page >= 0:
                    filled[page, 0, j % shape[2]] = True
        found = {}
        if dtype == torch.int8:
            cache = torch.randint(-127, 128, (*shape, features), generator=generator, dtype=torch.int8)
            scales = 0.02 * torch.rand(shape, generator=generator) + 0.005
            scales *= self.scale_of_values if name == "value" else 1.0
            found[f"{name}_scales"] = scales.masked_fill(~filled, torch.nan)
        else:
            layout = "heads_inside" if self.heads_inside else "contiguous"
            cache = random((*shape, features), dtype, generator, layout)
            cache.masked_fill_(~filled[..., None], torch.nan)
        return {f"{name}_cache": cache, **found}

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        """output and lse, and the caches as the call left them; those of the inputs stay."""
        return self.run_in_place({name: x.clone() if name in CACHES else x for name, x in inputs.items()}, backend)

    def run_in_place(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        """As run, on the inputs' own caches."""
        options = {name: getattr(self, name) for name in ("window", "softcap", "scale")}
        output, lse = functional.attention_decode(**inputs, **options, return_lse=True, backend=backend)
        return {"output": output, "lse": lse, **{name: inputs[name] for name in CACHES if name in inputs}}


def _dtypes() -> list[AttentionDecodeCase]:
    """Every cache dtype, contiguous and paged, with everything at once."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}
    everything = {
        "lengths": (0, 40, 131), "heads": 6, "kv_heads": 2, "q_len": 3, "window": 50, "softcap": 2.5, "sinks": True,
    }  # fmt: skip
    return [
        case
        for dtype, name in names.items()
        for case in (
            AttentionDecodeCase(f"cache_{name}", cache_dtype=dtype, head_dim=64),
            AttentionDecodeCase(f"everything_{name}", cache_dtype=dtype, head_dim=40, value_dim=33, **everything),
            AttentionDecodeCase(f"pages_{name}", cache_dtype=dtype, head_dim=48, page_size=7, **everything),
            AttentionDecodeCase(f"odd_{name}", cache_dtype=dtype, head_dim=37, value_dim=91),
            AttentionDecodeCase(f"long_{name}", (1500, 3), cache_dtype=dtype, heads=8, head_dim=64, page_size=16),
        )
    ]


def _cases() -> list[AttentionDecodeCase]:
    case = AttentionDecodeCase
    return [
        case("plain"),
        *_dtypes(),
        *(case(f"group_{group}", heads=2 * group, lengths=(70, 9)) for group in range(1, 9)),
        *(case(f"head_dim_{size}", head_dim=size) for size in (1, 2, 7, 8, 16, 31, 65, 80, 127, 128, 192, 256)),
        *(case(f"value_dim_{size}", value_dim=size) for size in (1, 3, 24, 100)),
        *(case(f"queries_{count}", q_len=count, heads=4, lengths=(0, 20, 77)) for count in (2, 5, 16, 33)),
        *(case(f"page_{size}", page_size=size, lengths=(0, 1, 15, 64)) for size in (1, 3, 16, 64, 200)),
        *(case(f"length_{length}", lengths=(length,)) for length in (0, 1, 15, 16, 63, 64, 255, 257)),
        case("no_new", new=False, lengths=(4, 64, 9)),
        case("no_new_fewer_keys_than_queries", new=False, q_len=4, lengths=(0, 2, 9)),
        case("no_new_no_keys_sinks", new=False, lengths=(0, 0), sinks=True),
        case("no_sequences", lengths=()),
        case("window_0", window=0, lengths=(0, 12, 40)),
        case("window_long", window=700, lengths=(3000, 5), q_len=2, heads=4),
        case("window_pages", window=9, page_size=4, lengths=(30, 70)),
        *(
            case(
                f"evicted_{name}", window=40, page_size=16, lengths=(90, 200), q_len=2, cache_dtype=dtype, evicted=True
            )
            for name, dtype in (("own", None), ("int8", torch.int8))
        ),
        case("small_values_int8", (200, 30), cache_dtype=torch.int8, scale_of_values=1e-3),
        case("softcap", softcap=1.5),
        case("sinks", sinks=True, heads=8),
        case("sinks_long", (1000, 400), sinks=True, heads=4),
        case("scale", scale=0.3),
        case("scale_negative", scale=-0.2, lengths=(45, 3)),
        case("scale_0", scale=0.0),
        case("many_sequences", lengths=tuple(range(0, 140, 7))),
        case("one_long_many_short", lengths=(5000, *(1,) * 9), heads=8, head_dim=16),
        case("transposed", layout="transposed", q_len=3),
        case("strided", layout="strided", q_len=3, heads=4),
        case("heads_inside", layout="heads_inside", q_len=2, heads_inside=True, heads=4),
        case("int32", index_dtype=torch.int32, page_size=5),
    ]


ATTENTION_DECODE_CASES = _cases()
