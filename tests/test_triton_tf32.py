"""TF32: fp32 products are true fp32 unless torch's own switch allows TF32; then the switch reaches the kernels, which
compile to tensor-core instructions without a GPU. No GPU has run them."""

import pytest
import torch
from tf32 import OFF, ON, restored

triton = pytest.importorskip("triton", reason="the package triton, whose kernels are compiled, is not installed")

from bigmodel_kernels.audit import audit, cases  # noqa: E402
from bigmodel_kernels.interpreter import interpreted  # noqa: E402
from bigmodel_kernels.triton import launch  # noqa: E402
from bigmodel_kernels.triton.attention_forward import forward_calls  # noqa: E402
from bigmodel_kernels.triton.attention_inputs import Features, precision, prepare  # noqa: E402
from bigmodel_kernels.triton.attention_launch import Device  # noqa: E402
from bigmodel_kernels.triton.linear import linear  # noqa: E402

compiled = pytest.mark.skipif(interpreted(), reason="interpreted kernels have no machine code")

META = torch.device("meta")


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
    ON["fp32_precision"]()
    selected = [case for case in cases(arch, (op,), ("fp32",)) if case.name in KERNELS[op]]
    assert [case.name for case in selected] and {case.name for case in selected} == set(KERNELS[op])
    for row in audit(arch, selected):
        assert {name.split(".")[0] for name in row.mma} == {INSTRUCTION[arch]}, row
        assert arch == "sm_100" or all("TF32" in name for name in row.mma), row
        assert row.spills == 0, row


@compiled
def test_true_fp32_compiles_to_none():
    (case,) = [each for each in cases("sm_90", ("linear",), ("fp32",)) if each.name == "linear (bias residual)"]
    (row,) = audit("sm_90", [case])
    assert not row.mma
