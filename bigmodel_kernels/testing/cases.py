"""The cases that every op must handle on every backend: ugly sizes, every option, every layout.

A case is a small frozen record. `inputs(dtype)` draws its tensors (always the same ones), and `run(inputs, backend)`
calls the public function and returns its outputs by name. Truth and reference are the same case run on the reference.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import functional
from .layouts import laid_out, random

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class AttentionCase:
    """One call of attention. mask: None, "bool", "bool_rows" (some queries see nothing), "float", "float_query" (in the
    query's dtype), "float_inf" (with -inf); mask_dims: which dimensions the mask has, 1 where it broadcasts.
    """

    name: str
    batch: int = 2
    heads: int = 2
    kv_heads: int | None = None
    q_len: int = 33
    kv_len: int = 33
    head_dim: int = 32
    value_dim: int | None = None
    mask: str | None = None
    mask_dims: str = "bhqk"
    mask_layout: str = "contiguous"
    causal: bool | str = False
    window: tuple[int | None, int | None] | None = None
    scale: float | None = None
    softcap: float | None = None
    alibi: str | None = None
    sinks: bool = False
    dropout_p: float = 0.0
    layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype) -> Tensors:
        """The case's tensors; those that are differentiable come first."""
        generator = torch.Generator().manual_seed(20170612)
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        shapes = {
            "query": (self.batch, self.heads, self.q_len, self.head_dim),
            "key": (self.batch, kv_heads, self.kv_len, self.head_dim),
            "value": (self.batch, kv_heads, self.kv_len, value_dim),
        }
        tensors = {name: random(shape, dtype, generator, self.layout) for name, shape in shapes.items()}
        if self.sinks:
            tensors["sinks"] = random((self.heads,), torch.float32, generator)
        if self.mask:
            tensors["mask"] = laid_out(self._mask(dtype, generator), self.mask_layout)
        if self.alibi:
            shape = (self.batch, self.heads) if self.alibi == "batch" else (self.heads,)
            tensors["alibi_slopes"] = random(shape, torch.float32, generator, scale=0.1).abs()
        if self.dropout_p > 0:
            tensors["dropout_seed"] = torch.tensor(-0x123456789ABCDEF, dtype=torch.int64)
        return tensors

    def _mask(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        whole = {"b": self.batch, "h": self.heads, "q": self.q_len, "k": self.kv_len}
        shape = tuple(whole[dim] if dim in self.mask_dims else 1 for dim in "bhqk")
        if self.mask.startswith("bool"):
            mask = torch.rand(shape, generator=generator) > 0.3
            if self.mask == "bool_rows":
                mask[..., ::3, :] = False
            return mask
        mask = random(shape, dtype if self.mask == "float_query" else torch.float32, generator)
        if self.mask == "float_inf":
            mask.masked_fill_(torch.rand(shape, generator=generator) > 0.7, -torch.inf)
            mask[..., ::3, :] = -torch.inf
        return mask

    def options(self) -> dict:
        names = ("causal", "window", "scale", "softcap", "dropout_p")
        return {name: getattr(self, name) for name in names}

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        output, lse = functional.attention(**inputs, **self.options(), return_lse=True, backend=backend)
        return {"output": output, "lse": lse}


@dataclass(frozen=True)
class AttentionWeightsCase:
    """One call of attention_weights, on the lse of the attention call that it belongs to."""

    attention: AttentionCase
    average_heads: bool = False

    @property
    def name(self) -> str:
        return self.attention.name + ("_averaged" if self.average_heads else "")

    def inputs(self, dtype: torch.dtype) -> Tensors:
        tensors = self.attention.inputs(dtype)
        with torch.no_grad():
            wide = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
            lse = self.attention.run(wide, "reference")["lse"].float()
        for name in ("value", "sinks"):
            tensors.pop(name, None)
        return {"lse": lse, **tensors}

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        options = {**self.attention.options(), "average_heads": self.average_heads}
        return {"weights": functional.attention_weights(**inputs, **options, backend=backend)}


@dataclass(frozen=True)
class LinearCase:
    """One call of linear. layout is that of x, residual and, with weight_layout, the weight."""

    name: str
    leading: tuple[int, ...] = (5,)
    in_features: int = 33
    out_features: int = 31
    bias: bool = True
    activation: str | None = None
    residual: bool = False
    layout: str = "contiguous"
    weight_layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(20170612)
        tensors = {
            "x": random((*self.leading, self.in_features), dtype, generator, self.layout),
            "weight": random(
                (self.out_features, self.in_features), dtype, generator, self.weight_layout, self.in_features**-0.5
            ),
        }
        if self.bias:
            tensors["bias"] = random((self.out_features,), dtype, generator)
            if self.activation == "relu":
                tensors["bias"] = _off_the_kink(tensors["bias"])
        if self.residual:
            tensors["residual"] = random((*self.leading, self.out_features), dtype, generator, self.layout)
        return tensors

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        return {"output": functional.linear(**inputs, activation=self.activation, backend=backend)}


@dataclass(frozen=True)
class FeedForwardCase:
    """One call of feed_forward."""

    name: str
    leading: tuple[int, ...] = (7,)
    width: int = 33
    hidden: int = 65
    out_width: int | None = None
    activation: str = "relu"
    gate: str | None = None
    bias: bool = True
    residual: bool = False
    dropout_p: float = 0.0
    layout: str = "contiguous"
    weight_layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(20170612)
        out_width = self.width if self.out_width is None else self.out_width

        def weight(rows: int, columns: int) -> Tensor:
            return random((rows, columns), dtype, generator, self.weight_layout, columns**-0.5)

        def bias(rows: int) -> Tensor | None:
            return random((rows,), dtype, generator) if self.bias else None

        tensors = {
            "x": random((*self.leading, self.width), dtype, generator, self.layout),
            "w1": weight(self.hidden, self.width),
            "b1": bias(self.hidden),
            "w2": weight(out_width, self.hidden),
            "b2": bias(out_width),
        }
        if self.gate is not None:
            rows = self.hidden if self.gate == "hidden" else self.width
            tensors |= {"w_gate": weight(rows, self.width), "b_gate": bias(rows)}
        if self.activation == "relu" and self.bias:
            activated = "b_gate" if self.gate == "hidden" else "b1"
            tensors[activated] = _off_the_kink(tensors[activated])
        if self.residual:
            tensors["residual"] = random((*self.leading, out_width), dtype, generator, self.layout)
        if self.dropout_p > 0:
            tensors["dropout_seed"] = torch.tensor(987654321987654321, dtype=torch.int64)
        return tensors

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        options = {"activation": self.activation, "gate": self.gate, "dropout_p": self.dropout_p}
        return {"output": functional.feed_forward(**inputs, **options, backend=backend)}


@dataclass(frozen=True)
class AddNormCase:
    """One call of add_norm."""

    name: str
    leading: tuple[int, ...] = (5,)
    width: int = 33
    kind: str = "layer"
    residual: bool = True
    weight: bool = True
    bias: bool = True
    float32_parameters: bool = False
    layout: str = "contiguous"
    eps: float = 1e-5

    def inputs(self, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(20170612)
        parameter = torch.float32 if self.float32_parameters else dtype
        shape = (*self.leading, self.width)
        return {
            "x": random(shape, dtype, generator, self.layout),
            "residual": random(shape, dtype, generator, self.layout) if self.residual else None,
            "weight": random((self.width,), parameter, generator) if self.weight else None,
            "bias": random((self.width,), parameter, generator) if self.bias else None,
        }

    def run(self, inputs: Tensors, backend: str | None = None) -> Tensors:
        total, normed = functional.add_norm(**inputs, kind=self.kind, eps=self.eps, backend=backend)
        return {"normed": normed} | ({"sum": total} if self.residual else {})


def _off_the_kink(bias: Tensor) -> Tensor:
    """In low precision rounding decides on which side of ReLU's kink an argument near 0 falls, and so its gradient:
    six standard deviations of bias keep the arguments away from there.
    """
    return bias if bias.dtype in (torch.float32, torch.float64) else bias + 6 * bias.sign()


def _attention_shapes() -> list[AttentionCase]:
    case = AttentionCase
    return [
        case("one", batch=1, heads=1, q_len=1, kv_len=1, head_dim=1),
        case("one_query", q_len=1, kv_len=65, head_dim=64),
        case("one_query_long", batch=1, heads=1, q_len=1, kv_len=1031, head_dim=64),
        case("one_key", q_len=37, kv_len=1, head_dim=16),
        case("primes", batch=3, heads=5, q_len=13, kv_len=29, head_dim=7, value_dim=11),
        case("head_dim_2", head_dim=2, value_dim=1),
        case("head_dim_17", head_dim=17),
        case("head_dim_63", head_dim=63, value_dim=65),
        case("head_dim_80", head_dim=80),
        case("head_dim_128", batch=1, head_dim=128, q_len=65, kv_len=127),
        case("head_dim_129", batch=1, head_dim=129, value_dim=40),
        case("head_dim_192", batch=1, head_dim=192, q_len=17),
        case("head_dim_256", batch=1, head_dim=256, q_len=20),
        case("head_dim_512", batch=1, head_dim=512, q_len=17, kv_len=40),
        case("below_tiles", q_len=31, kv_len=63, head_dim=64),
        case("tiles", q_len=32, kv_len=64, head_dim=64),
        case("above_tiles", q_len=65, kv_len=129, head_dim=64),
        case("large_tiles", batch=1, q_len=128, kv_len=256, head_dim=64),
        case("above_large_tiles", batch=1, heads=1, q_len=257, kv_len=513, head_dim=40),
        case("long_keys", batch=1, heads=1, q_len=3, kv_len=2053, head_dim=24),
        case("many_heads", batch=3, heads=7, q_len=9, kv_len=17, head_dim=8),
        case("grouped", heads=6, kv_heads=2, q_len=19, kv_len=47),
        case("multi_query", heads=5, kv_heads=1, q_len=35, kv_len=34),
        case("zero_batch", batch=0),
        case("zero_batch_mask", batch=0, mask="float"),
        case("zero_heads", heads=0),
        case("zero_queries", q_len=0),
        case("zero_keys", kv_len=0),
        case("zero_keys_sinks", kv_len=0, sinks=True),
    ]


def _attention_options() -> list[AttentionCase]:
    case = AttentionCase
    return [
        case("causal", causal=True, q_len=67, kv_len=67, head_dim=64),
        case("causal_top_left_wide", causal="top_left", q_len=20, kv_len=70),
        case("causal_top_left_tall", causal="top_left", q_len=70, kv_len=20),
        case("causal_bottom_right_wide", causal="bottom_right", q_len=20, kv_len=70),
        case("causal_bottom_right_tall", causal="bottom_right", q_len=70, kv_len=20),
        case("causal_large", batch=1, causal=True, q_len=300, kv_len=300, head_dim=64),
        case("window", window=(7, 5), q_len=70, kv_len=70),
        case("window_left", window=(9, None), q_len=70, kv_len=41),
        case("window_right", window=(-1, 3), q_len=41, kv_len=70),
        case("window_causal", window=(16, None), causal="bottom_right", q_len=130, kv_len=150),
        case("window_zero", window=(0, 0), q_len=40, kv_len=40),
        case("window_empty_rows", window=(2, 2), causal="top_left", q_len=90, kv_len=20),
        case("scale", scale=0.37),
        case("scale_zero", scale=0.0),
        case("scale_negative", scale=-0.5),
        case("softcap", softcap=1.5),
        case("softcap_large", softcap=30.0, scale=2.0),
        case("alibi", alibi="heads", q_len=50, kv_len=70),
        case("alibi_batch", alibi="batch", causal=True, q_len=70, kv_len=50),
        case("alibi_causal_bottom_right", alibi="heads", causal="bottom_right", heads=4, kv_heads=2),
        case("sinks", sinks=True),
        case("sinks_causal", sinks=True, causal="bottom_right", q_len=50, kv_len=20),
        case("mask_bool", mask="bool"),
        case("mask_bool_keys", mask="bool", mask_dims="bk", q_len=50, kv_len=70),
        case("mask_bool_queries", mask="bool_rows", mask_dims="bq"),
        case("mask_bool_scores", mask="bool", mask_dims="qk", causal=True),
        case("mask_bool_rows", mask="bool_rows", q_len=70, kv_len=70),
        case("mask_bool_rows_sinks", mask="bool_rows", sinks=True),
        case("mask_bool_one", mask="bool", mask_dims=""),
        case("mask_float", mask="float"),
        case("mask_float_query_dtype", mask="float_query", mask_dims="hqk", q_len=40, kv_len=65),
        case("mask_float_scores", mask="float", mask_dims="qk", heads=4, kv_heads=2),
        case("mask_float_keys", mask="float", mask_dims="bk"),
        case("mask_float_one", mask="float", mask_dims="h"),
        case("mask_float_inf", mask="float_inf", q_len=65, kv_len=40),
        case("mask_bool_strided", mask="bool_rows", mask_layout="strided", q_len=40, kv_len=65),
        case("mask_bool_transposed", mask="bool", mask_dims="bqk", mask_layout="transposed", causal=True),
        case("mask_float_strided", mask="float_inf", mask_layout="strided", q_len=35, kv_len=66),
        case("mask_float_transposed", mask="float_query", mask_dims="hqk", mask_layout="transposed"),
        case("mask_float_keys_strided", mask="float", mask_dims="bk", mask_layout="strided"),
        case("dropout", dropout_p=0.3, q_len=37, kv_len=71),
        case("dropout_grouped", dropout_p=0.6, heads=4, kv_heads=2, causal=True, batch=3),
        case("heads_inside", layout="heads_inside", q_len=40, kv_len=50),
        case("heads_inside_long", layout="heads_inside", batch=1, q_len=37, kv_len=601, mask="float", mask_dims="qk"),
        case("heads_inside_grouped", layout="heads_inside", heads=4, kv_heads=2, causal=True, value_dim=24),
        case("transposed", layout="transposed"),
        case("strided", layout="strided", mask="float"),
        case("offset", layout="offset", head_dim=30),
        case(
            "everything",
            heads=4,
            kv_heads=2,
            q_len=70,
            kv_len=90,
            head_dim=40,
            value_dim=24,
            mask="float_inf",
            mask_dims="bqk",
            causal="bottom_right",
            window=(40, 9),
            scale=0.2,
            softcap=5.0,
            alibi="heads",
            sinks=True,
            dropout_p=0.2,
            layout="heads_inside",
        ),
    ]


def _attention_weights() -> list[AttentionWeightsCase]:
    # The weights of attention's own cases; zero-size dimensions and value sizes are attention's business.
    chosen = [case for case in ATTENTION_CASES if not case.name.startswith("zero_heads")]
    cases = [AttentionWeightsCase(case) for case in chosen]
    averaged = (
        "one",
        "primes",
        "above_tiles",
        "grouped",
        "causal",
        "mask_bool_rows",
        "mask_float",
        "mask_float_scores",
    )
    averaged += ("sinks", "dropout", "heads_inside", "zero_batch", "zero_keys", "everything")
    return cases + [AttentionWeightsCase(case, average_heads=True) for case in chosen if case.name in averaged]


def _linear() -> list[LinearCase]:
    case = LinearCase
    sizes = [
        (1, 1, 1),
        (1, 64, 64),
        (3, 7, 5),
        (64, 64, 64),
        (65, 127, 129),
        (6, 257, 16),
        (17, 16, 257),
        (130, 100, 70),
    ]
    shapes = [case(f"{m}x{k}x{n}", leading=(m,), in_features=k, out_features=n) for m, k, n in sizes]
    activations = [case(name, leading=(9,), activation=name) for name in ("relu", "gelu", "gelu_tanh", "silu")]
    return [
        *shapes,
        *activations,
        *(replace(each, name=each.name + "_residual", residual=True) for each in activations),
        case("no_bias", bias=False),
        case("residual", residual=True, leading=(2, 3, 5)),
        case("one_dimension", leading=()),
        case("batch", leading=(2, 0, 3)),
        case("zero_batch_transposed", leading=(0, 11, 7), layout="transposed"),
        case("zero_rows", leading=(0,)),
        case("zero_rows_activation", leading=(0,), activation="gelu"),
        case("three_dimensions", leading=(3, 5), activation="silu"),
        case("transposed", layout="transposed", leading=(20,), residual=True),
        case("strided", layout="strided", leading=(3, 10), residual=True),
        case("heads_inside", layout="heads_inside", leading=(3, 10), residual=True),
        case("offset", layout="offset", leading=(11,), residual=True),
        case("weight_transposed", weight_layout="transposed", activation="gelu"),
        case("weight_strided", weight_layout="strided"),
        case("weight_offset", weight_layout="offset", in_features=64, out_features=48),
        case("deep", leading=(5,), in_features=2053, out_features=19),
        *(case(f"deep_{m}_rows", leading=(m,), in_features=1100, out_features=101) for m in (1, 8, 9, 31, 32, 33)),
    ]


def _feed_forward() -> list[FeedForwardCase]:
    case = FeedForwardCase
    forms = [
        case(f"{activation}_{gate or 'plain'}", activation=activation, gate=gate)
        for activation in ("relu", "gelu", "gelu_tanh", "silu")
        for gate in (None, "hidden", "input")
    ]
    return [
        *forms,
        case("one", leading=(1,), width=1, hidden=1),
        case("one_row_hidden", leading=(1,), width=64, hidden=256, activation="silu", gate="hidden", bias=False),
        case("one_row_input", leading=(1,), width=64, hidden=256, gate="input"),
        case("out_width", out_width=17, activation="gelu"),
        case("out_width_hidden", out_width=40, gate="hidden", activation="silu", residual=True),
        case("rows_65", leading=(65,), width=64, hidden=129, activation="gelu", residual=True),
        case("rows_130_hidden", leading=(130,), width=72, hidden=200, activation="silu", gate="hidden"),
        case("rows_130_input", leading=(130,), width=72, hidden=200, gate="input"),
        case("no_bias", bias=False, activation="silu"),
        case("no_bias_input", bias=False, gate="input", activation="gelu"),
        case("residual", leading=(2, 3, 4), residual=True),
        case("residual_input", leading=(2, 9), residual=True, gate="input"),
        case("one_dimension", leading=(), gate="hidden"),
        case("zero_rows", leading=(0,), gate="hidden", activation="gelu"),
        case("zero_batch", leading=(0, 3), residual=True),
        case("dropout", dropout_p=0.4, leading=(3, 7)),
        case("dropout_hidden", dropout_p=0.1, gate="hidden", activation="silu", residual=True),
        case("dropout_input", dropout_p=0.5, gate="input", leading=(2, 30)),
        case("transposed", layout="transposed", leading=(20,), residual=True, gate="hidden"),
        case("strided", layout="strided", leading=(3, 10), residual=True, gate="input"),
        case("offset", layout="offset", leading=(11,)),
        case("weight_transposed", weight_layout="transposed", gate="hidden", activation="gelu"),
        case("weight_strided", weight_layout="strided", gate="input"),
    ]


def _add_norm() -> list[AddNormCase]:
    case = AddNormCase
    widths = (1, 2, 7, 8, 31, 64, 65, 127, 512, 1031)
    shapes = [case(f"width_{width}_{kind}", width=width, kind=kind) for width in widths for kind in ("layer", "rms")]
    return [
        *shapes,
        *(
            replace(base, name=f"{base.name}_{kind}", kind=kind)
            for kind in ("layer", "rms")
            for base in (
                case("no_residual", residual=False),
                case("no_residual_no_bias", residual=False, bias=False),
                case("no_bias", bias=False),
                case("no_weight", weight=False),
                case("no_parameters", weight=False, bias=False),
                case("float32_parameters", float32_parameters=True),
                case("eps", eps=0.3),
                case("rows_257", leading=(257,), width=48),
                case("three_dimensions", leading=(3, 5)),
                case("one_dimension", leading=()),
                case("zero_rows", leading=(0,)),
                case("zero_batch_no_residual", leading=(0, 4), residual=False),
                case("transposed", layout="transposed", leading=(40,)),
                case("strided", layout="strided", leading=(3, 10)),
                case("heads_inside", layout="heads_inside", leading=(3, 10)),
                case("offset", layout="offset", leading=(11,)),
            )
        ),
    ]


ATTENTION_CASES = [*_attention_shapes(), *_attention_options()]
ATTENTION_WEIGHTS_CASES = _attention_weights()
LINEAR_CASES = _linear()
FEED_FORWARD_CASES = _feed_forward()
ADD_NORM_CASES = _add_norm()
