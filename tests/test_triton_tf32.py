"""TF32: fp32 products are true fp32 unless torch's own switch allows TF32; then the switch reaches the kernels, which
compile to tensor-core instructions without a GPU. No GPU has run them; the interpreter can round as they do."""

import pytest
import tf32
import torch
from op_check import check_tf32, run_with_gradients
from tf32 import OFF, ON, restored

triton = pytest.importorskip("triton", reason="the package triton, whose kernels are compiled, is not installed")

from bigmodel_kernels.audit import audit, cases  # noqa: E402
from bigmodel_kernels.interpreter import interpreted  # noqa: E402
from bigmodel_kernels.testing import (  # noqa: E402
    ATTENTION_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
    LINEAR_CROSS_ENTROPY_CASES,
)
from bigmodel_kernels.triton import launch  # noqa: E402
from bigmodel_kernels.triton.attention_forward import forward_calls  # noqa: E402
from bigmodel_kernels.triton.attention_inputs import Features, precision, prepare  # noqa: E402
from bigmodel_kernels.triton.attention_launch import Device  # noqa: E402
from bigmodel_kernels.triton.linear import linear  # noqa: E402

compiled = pytest.mark.skipif(interpreted(), reason="interpreted kernels have no machine code")
only_interpreted = pytest.mark.skipif(
    not interpreted(), reason="rounds the interpreter's products: only under TRITON_INTERPRET=1"
)

META = torch.device("meta")

ATTENTION = ("above_large_tiles", "dropout_grouped", "mask_float_strided", "window_causal")
CASES = {
    "linear": LINEAR_CASES,
    "feed_forward": FEED_FORWARD_CASES,
    "linear_cross_entropy": [case for case in LINEAR_CROSS_ENTROPY_CASES if case.name in ("97x20x2500", "softcap")],
    "attention": [case for case in ATTENTION_CASES if case.name in ATTENTION],
}
NAMED = [
    pytest.param(case, id=f"{op}-{case.name}")
    for op, cases in CASES.items()
    for case in cases
    if all(x is None or x.numel() > 0 for x in case.inputs(torch.float32).values())
]


@pytest.fixture(autouse=True)
def switch():
    with restored():
        yield


def arithmetic() -> tuple[str, str]:
    """What linear and attention would multiply on an A100."""
    device = torch.device("cuda", 0)
    with launch.recorded(80, 108):
        ours = launch.matmul_arithmetic(torch.float32, device)
    return ours, precision(torch.float32, META, 64)


@pytest.mark.parametrize("way", ON)
def test_every_way_to_allow_tf32_is_heard(way):
    ON[way]()
    assert arithmetic() == ("tf32", "tf32")


@pytest.mark.parametrize("way", OFF)
def test_true_fp32_is_what_all_else_means(way):
    OFF[way]()
    assert arithmetic() == ("ieee", "ieee")


def test_where_tf32_does_not_apply():
    ON["fp32_precision"]()
    with launch.recorded(75, 40):
        assert launch.matmul_arithmetic(torch.float32, torch.device("cuda", 0)) == "ieee", "sm_75 has none"
        assert precision(torch.float32, META, 64) == "ieee", "for attention neither"
    with launch.recorded(80, 108):
        assert launch.matmul_arithmetic(torch.bfloat16, torch.device("cuda", 0)) == "half"
        assert precision(torch.float32, META, 64) == "tf32"
    assert launch.matmul_arithmetic(torch.float32, torch.device("cpu")) == "ieee", "nor has the interpreter"
    assert precision(torch.float32, torch.device("cpu"), 64) == "ieee"
    assert precision(torch.float32, META, 512) == "ieee", "too much shared memory"
    assert precision(torch.float16, META, 64) == "ieee", "means nothing there"


def precision_of_a_launch() -> str:
    x, weight = torch.empty(64, 64, device="meta"), torch.empty(64, 64, device="meta")
    with launch.recorded(90, 132) as launches:
        linear(x, weight)
    return launches[0].arguments["BLOCKS"].PRECISION


def precision_of_attention() -> str:
    x, lse = torch.empty(1, 2, 64, 64, device="meta"), torch.empty(1, 2, 64, device="meta")
    options = {"scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}
    inputs, features = prepare("attention", x, x, x, None, None, None, None, causal="none", **options)
    (call, *_) = forward_calls(inputs, features, x, lse, x.dtype, Device(90, 132, 1 << 25))
    (found,) = [each.precision for each in call.arguments if isinstance(each, Features)]
    return found


@pytest.mark.parametrize("way, expected", [("untouched", "ieee"), ("fp32_precision", "tf32")])
def test_the_switch_reaches_the_kernels(way, expected):
    (ON if expected == "tf32" else OFF)[way]()
    assert precision_of_a_launch() == expected
    assert precision_of_attention() == expected


KERNELS = {
    "attention": ("forward causal d64", "grad_key_value causal d64", "grad_query causal d64"),
    "linear": ("linear (bias residual)",),
    "feed_forward": ("gated_hidden (swiglu)",),
}
INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA"}


@compiled
@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("arch", INSTRUCTION)
def test_tf32_compiles_to_tensor_core_instructions(arch, op):
    selected = [case for case in cases(arch, (op,), ("tf32",)) if case.name in KERNELS[op]]
    assert [case.name for case in selected] and {case.name for case in selected} == set(KERNELS[op])
    for row in audit(arch, selected):
        assert {name.split(".")[0] for name in row.mma} == {INSTRUCTION[arch]}, row
        assert arch == "sm_100" or all("TF32" in name for name in row.mma), row
        assert row.spills == 0, row


@compiled
def test_true_fp32_compiles_to_none():
    ON["fp32_precision"]()  # which the audit does not ask
    (case,) = [each for each in cases("sm_90", ("linear",), ("fp32",)) if each.name == "linear (bias residual)"]
    (row,) = audit("sm_90", [case])
    assert not row.mma


@compiled
@pytest.mark.parametrize("name", ["grad_weight (backward)", "grad_weight (gelu backward)"])
def test_sums_compile_to_no_tensor_core_instructions(name):
    """The bias's gradient is a sum: on sm_90, whose instructions tell their width, all are as wide as the product."""
    (case,) = [each for each in cases("sm_90", ("linear",), ("tf32",)) if each.name == name]
    (row,) = audit("sm_90", [case])
    (_, columns, _), *_ = case.dots
    assert {each.split(".")[1] for each in row.mma} == {f"64x{columns}x8"}, row
    assert row.spills == 0, row


@pytest.fixture
def multiplied_in_tf32(monkeypatch):
    """The interpreter with TF32: how many products rounded their factors so far."""
    from triton._C.libtriton.ir import INPUT_PRECISION
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply, products = InterpreterBuilder.create_dot, []

    def rounded(x: TensorHandle) -> TensorHandle:
        return TensorHandle(tf32.rounded(torch.from_numpy(x.data)).numpy(), x.dtype)

    def multiply_rounded(builder, a, b, sums, precision, imprecise):
        if precision == INPUT_PRECISION.TF32:
            products.append(precision)
            a, b = rounded(a), rounded(b)
        return multiply(builder, a, b, sums, precision, imprecise)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiply_rounded)
    monkeypatch.setattr(launch, "tf32_allowed", lambda device: True)
    return products


@only_interpreted
@pytest.mark.parametrize("case", NAMED)
def test_only_products_are_rounded(case, multiplied_in_tf32):
    """Sums are not, the gradients of biases among them."""
    found = run_with_gradients(case, case.inputs(torch.float32), torch.float32, "triton")
    assert multiplied_in_tf32
    check_tf32(case, found)
