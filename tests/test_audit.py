"""The audit: what the machine code of default kernels must show, and what the command prints.

A selection that compiles in some minutes on one core; `bigmodel audit` compiles them all.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_kernels import backends
from bigmodel_kernels.interpreter import interpreted

pytest.importorskip("triton", reason="the package triton, which compiles the kernels, is not installed")
if interpreted():
    pytest.skip("interpreted kernels have no machine code", allow_module_level=True)

import triton
import triton.language as tl

from bigmodel_kernels.audit import ARCHITECTURES, audit, cases
from bigmodel_kernels.audit.architectures import BY_CAPABILITY, blocks_per_multiprocessor
from bigmodel_kernels.audit.disassembly import hot_loop, parse
from bigmodel_kernels.audit.limiter import predict
from bigmodel_kernels.audit.machine_code import Counts, MachineCode, count
from bigmodel_kernels.triton.audit_case import AuditCase

PASSES = ("forward causal d128", "grad_key_value causal d128", "grad_query causal d128")
# By architecture: (dtype, kernels). Every kind of kernel is there, and each architecture has its own of most of them.
SELECTED = {
    "sm_75": {
        "fp16": ("linear (few rows)", "add_norm (layer 4096)", *PASSES),
        "fp32": ("grad_weight (backward)", "grad_query d128"),
    },
    "sm_80": {
        "bf16": (
            "linear (bias residual)",
            "grad_weight (backward)",
            "gated_hidden (swiglu)",
            "add_norm (layer 4096)",
            *PASSES,
            "forward one query d128",
            "merge one query d128",
            "row_terms d128",
            "grad_mask d128",
        ),
        "fp32": ("gated_hidden (swiglu)", "forward causal d64", "grad_key_value causal d64", "grad_query causal d64"),
        "fp16": ("forward causal d64",),
    },
    "sm_86": {
        "bf16": ("linear (bias residual)", "grad_input (gelu backward)", *PASSES),
        "fp32": ("grad_weight (backward)", "grad_mask d128"),
    },
    "sm_89": {"bf16": ("gated_hidden (swiglu)", "add_norm_backward (layer 4096 backward)", *PASSES)},
    "sm_90": {
        "bf16": (
            "linear (few rows)",
            "grad_weight (backward)",
            "gated_hidden (swiglu)",
            "add_norm (layer 65536)",
            *PASSES,
            "weights d128",
        ),
        "fp32": ("linear (swiglu)",),
    },
    "sm_100": {
        "bf16": (
            "linear (few rows)",
            "gate_gradient (gelu backward)",
            "add_norm_backward (rms 4096 backward)",
            *PASSES,
            "weights d64",
        )
    },
    "sm_120": {"bf16": ("linear (gelu)", "grad_weight (backward)", *PASSES), "fp32": ("grad_input (gelu backward)",)},
}
# Above 128 features attention's accumulators and factors fill the registers, and some of them are spilled; in fp32,
# without tensor cores, each thread holds whole rows of both factors. By (arch, dtype, kernel): at most so many
# instructions.
SPILLS_ABOVE_128 = {
    ("sm_80", "bf16", "forward causal d256"): 0,
    ("sm_80", "bf16", "grad_key_value causal d256"): 0,
    ("sm_80", "bf16", "grad_query causal d512"): 16,
    ("sm_86", "bf16", "grad_query causal d512"): 0,
    ("sm_90", "bf16", "forward causal d256"): 16,
    ("sm_90", "bf16", "forward causal d512"): 64,
    ("sm_90", "bf16", "grad_query causal d512"): 16,
    ("sm_100", "bf16", "forward causal d256"): 16,
    ("sm_100", "bf16", "forward causal d512"): 0,
    ("sm_100", "bf16", "grad_query causal d512"): 16,
    ("sm_75", "fp16", "grad_key_value causal d256"): 0,
    ("sm_75", "fp16", "grad_query causal d256"): 0,
    ("sm_75", "fp16", "grad_key_value causal d512"): 0,
    ("sm_75", "fp16", "grad_query causal d512"): 0,
    ("sm_75", "fp32", "grad_key_value causal d512"): 0,
    ("sm_80", "fp32", "grad_key_value causal d256"): 0,
    ("sm_80", "fp32", "grad_query causal d512"): 0,
    ("sm_90", "fp32", "grad_query causal d256"): 0,
    ("sm_90", "fp32", "grad_key_value causal d512"): 0,
    ("sm_120", "fp32", "grad_query causal d256"): 0,
    ("sm_120", "fp32", "grad_key_value causal d512"): 0,
}
# Options take registers too. By (arch, dtype).
OPTIONS = {
    ("sm_80", "bf16"): ("grad_key_value softcap d128", "grad_query additive mask d128"),
    ("sm_90", "bf16"): ("forward bool mask d128",),
    ("sm_86", "bf16"): ("grad_key_value additive mask d128",),
    ("sm_100", "bf16"): ("forward softcap d128", "grad_query alibi d128"),
    ("sm_120", "bf16"): ("forward additive mask d128",),
    ("sm_86", "tf32"): ("forward causal d128", "grad_key_value causal d256", "grad_mask d64", "grad_mask d256"),
    ("sm_90", "tf32"): ("grad_mask d64",),
    ("sm_120", "tf32"): ("grad_key_value causal d128", "grad_query causal d256", "grad_mask d128"),
}
# Dropout's random numbers take the most: every pass where its launch is dropout's own, and some of the others.
_PASSES_OF_DROPOUT = tuple(f"{each} causal dropout" for each in ("forward", "grad_key_value", "grad_query"))
DROPOUT = {
    ("sm_75", "fp16"): ("grad_key_value causal dropout d64", "grad_key_value causal dropout d128"),
    ("sm_80", "bf16"): tuple(f"{each} d{size}" for each in _PASSES_OF_DROPOUT for size in (64, 128)),
    ("sm_86", "bf16"): (
        "grad_key_value causal dropout d64",
        "grad_query causal dropout d64",
        "forward causal dropout d128",
    ),
    ("sm_90", "bf16"): tuple(f"{each} d{size}" for each in _PASSES_OF_DROPOUT for size in (64, 128)),
    ("sm_100", "bf16"): ("forward causal dropout d64", "forward causal dropout d128", "grad_query causal dropout d128"),
    ("sm_120", "bf16"): (
        "grad_key_value causal dropout d64",
        "grad_query causal dropout d64",
        "forward causal dropout d128",
    ),
}
# Several of what takes registers at once. By (arch, dtype).
_MASKED = "causal grouped dropout additive mask"
COMBINED = {
    ("sm_80", "bf16"): tuple(
        f"{each} d{size}"
        for size in (64, 128)
        for each in (
            "grad_key_value causal grouped",
            "grad_key_value causal grouped dropout bool mask",
            "forward packed few causal grouped",
            f"forward packed few {_MASKED}",
            f"grad_key_value packed {_MASKED}",
            f"grad_query packed {_MASKED}",
            f"grad_mask packed {_MASKED}",
        )
    ),
    ("sm_90", "bf16"): (
        "forward few causal grouped dropout bool mask d128",
        "grad_key_value packed causal grouped d128",
        f"grad_key_value packed {_MASKED} d128",
        f"grad_query packed {_MASKED} d128",
    ),
    ("sm_100", "bf16"): ("grad_key_value causal grouped d64", f"grad_key_value packed {_MASKED} d128"),
    ("sm_120", "bf16"): (
        "forward few causal grouped dropout bool mask d64",
        f"forward few {_MASKED} d64",
        f"grad_mask {_MASKED} d128",
    ),
    ("sm_86", "bf16"): ("grad_mask d64", f"grad_mask packed {_MASKED} d64"),
    ("sm_75", "fp16"): (f"grad_mask {_MASKED} d64", f"grad_key_value packed {_MASKED} d64"),
    **dict.fromkeys(
        (("sm_80", "tf32"), ("sm_120", "tf32")), tuple(f"grad_mask causal dropout d{size}" for size in (64, 128))
    ),
}


def rows_named(arch: str, dtype: str, names: tuple[str, ...], every: bool = False) -> list:
    selected = [case for case in cases(arch, dtypes=(dtype,), every=every) if case.name in names]
    selected = [case for case in selected if case.op != "attention_weights" or case.name.startswith("weights")]
    assert {case.name for case in selected} == set(names)
    return list(audit(arch, selected))


def architecture_of(row):
    return next(each for each in BY_CAPABILITY.values() if each.name == row.arch)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def rows(request):
    found = (rows_named(request.param, dtype, names) for dtype, names in SELECTED[request.param].items())
    return [row for of_dtype in found for row in of_dtype]


def test_products_run_on_the_tensor_cores(rows):
    """Of the architecture's own kind. True fp32 has none, and Triton has none for sm_75."""
    for row in rows:
        if row.mma_expected == 0 or row.arch == "sm_75":
            assert not row.mma, row
        else:
            assert {name.split(".")[0] for name in row.mma} == {architecture_of(row).mma}, row


def test_as_many_tensor_core_instructions_as_the_tiles_demand(rows):
    """An iteration of the inner loop has exactly its products' worth, or that of several iterations, unrolled."""
    for row in rows:
        if row.mma:
            assert sum(row.mma.values()) >= row.mma_expected, row
            in_turn = row.loop_mma if row.loop_mma else sum(row.mma.values())
            if row.kernel != "grad_weight (backward)":  # whose sums of rows are a product with a part of a tile
                assert in_turn % row.mma_expected == 0, row
            if row.op == "attention" and "grad_mask" not in row.kernel:
                assert row.loop_mma == row.mma_expected and 0 < row.mma_share < 1, row


def test_no_register_spills(rows):
    for row in rows:
        assert (row.spills, row.stack) == (0, 0), row


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_kernels_of_generation(arch):
    """No spills; rows of the cache that lie one after another are read 128 bits at a time."""
    names = ("append (d128, int8)", "attention_decode (d128, bf16)", "attention_decode (d128, int8, pages)")
    names += ("attention_decode (d64, bf16, pages)",)  # which spills on sm_120 in the registers that it would be given
    for row in rows_named(arch, "bf16", (*names, "rotary (halves)", "rotary (interleaved)")):
        assert (row.spills, row.stack, row.atomics) == (0, 0, 0), row
        assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row
        assert row.kernel != names[1] or row.global_loads.get("128", 0) > 0, row


@pytest.mark.parametrize(
    ("arch", "head_dim"), [("sm_80", 64), ("sm_80", 128), ("sm_90", 64), ("sm_90", 128), ("sm_120", 64)]
)
def test_packed_sequences_take_no_more_than_there_is(arch, head_dim):
    """What is an argument elsewhere, as the lengths, is in registers there."""
    passes = ("forward", "grad_key_value", "grad_query")
    names = tuple(f"{each} packed causal d{head_dim}" for each in ("order_tiles", *passes))
    for row in rows_named(arch, "bf16", names):
        assert (row.spills, row.stack, row.atomics) == (0, 0, 0), row
        assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row
        assert row.loop_mma == row.mma_expected, row


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_of_the_loss(arch):
    """The forward pass holds a block of logits and what it knows of their rows; neither direction spills or adds
    atomically."""
    names = ("cross_entropy_parts (every option)", "logits_gradient (every option backward)")
    for row in rows_named(arch, "bf16", names):
        assert (row.spills, row.stack, row.atomics) == (0, 0, 0), row
        assert row.mma and row.global_loads.get("128", 0) > 0, row


@pytest.mark.parametrize(("arch", "dtype", "kernel"), SPILLS_ABOVE_128)
def test_few_register_spills_above_128_features(arch, dtype, kernel):
    (row,) = [row for row in rows_named(arch, dtype, (kernel,)) if row.op == "attention"]
    assert row.spills <= SPILLS_ABOVE_128[arch, dtype, kernel], row
    assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row


@pytest.mark.parametrize(
    ("arch", "dtype", "kernel"),
    [(*key, kernel) for table in (OPTIONS, DROPOUT) for key in table for kernel in table[key]],
)
def test_options_and_tf32_keep_to_registers_shared_memory_and_tensor_cores(arch, dtype, kernel):
    (row,) = rows_named(arch, dtype, (kernel,))
    assert (row.spills, row.stack) == (0, 0), row
    assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row
    assert {name.split(".")[0] for name in row.mma} == ({architecture_of(row).mma} if arch != "sm_75" else set()), row
    assert dtype != "tf32" or all("TF32" in name for name in row.mma), row
    assert row.atomics == 0, row


@pytest.mark.parametrize(("arch", "dtype", "kernel"), [(*key, kernel) for key in COMBINED for kernel in COMBINED[key]])
def test_what_is_combined_keeps_to_registers_and_shared_memory(arch, dtype, kernel):
    (row,) = rows_named(arch, dtype, (kernel,), every=True)
    assert (row.spills, row.stack, row.atomics) == (0, 0, 0), row
    assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row


@triton.jit
def _atomic_kernel(x):
    tl.atomic_add(x, 1.0)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_atomics_are_counted(arch):
    case = AuditCase("none", "atomic", _atomic_kernel, {"x": "*fp32"}, {}, ((0,),), 4, 1, "fp32")
    (row,) = audit(arch, [case])
    assert row.atomics == 1


def test_no_kernel_adds_by_atomics(rows):
    """So the order of every sum is fixed: what the interpreter, which runs programs in turn, cannot show."""
    for row in rows:
        assert row.atomics == 0, row


def test_fits_the_architecture(rows):
    for row in rows:
        assert row.static_shared + row.dynamic_shared <= architecture_of(row).block_shared_bytes, row
        assert row.blocks_per_multiprocessor >= 1, row


@pytest.mark.parametrize("kernel", ["forward additive mask d64", "grad_key_value additive mask d64"])
def test_additive_masks_fit_too(kernel):
    """Where shared memory is smallest: Triton loads tiles of the mask ahead as well, and they take room there."""
    (case,) = [case for case in cases("sm_86", ("attention",), ("bf16",), every=True) if case.name == kernel]
    (row,) = audit("sm_86", [case])
    assert row.dynamic_shared <= architecture_of(row).block_shared_bytes, row


def test_aligned_inputs_are_loaded_128_bits_at_a_time(rows):
    """By bytes: what is left is a number per row or per block. Without tensor cores 16-bit gradients of many features
    come in parts of 32, of which a thread has 64 bits: the price of no spills."""
    for row in rows:
        loaded = {int(width): int(width) * number for width, number in row.global_loads.items()}
        in_parts = row.arch == "sm_75" and row.op == "attention" and row.kernel.startswith("grad_")
        widest = 64 if in_parts else 128
        assert sum(size for width, size in loaded.items() if width >= widest) >= 0.8 * sum(loaded.values()), row


def test_one_exponential_per_score(rows):
    """And one per row that the softmax rescales, which without tensor cores many threads hold a part of."""
    for row in rows:
        if row.exps_per_score is not None:
            assert 0.99 <= row.exps_per_score < (1.2 if row.mma else 1.6), row


def test_predictions_say_so_and_show_their_arithmetic(rows):
    for row in rows:
        assert row.predicted and row.backend == "triton"
        assert row.clocks[row.limiter] == max(row.clocks.values())
        assert row.arithmetic.keys() == row.clocks.keys()
        assert all("per clock = " in text for text in row.arithmetic.values())


def test_occupancy():
    a100 = BY_CAPABILITY[80]
    assert blocks_per_multiprocessor(a100, warps=8, registers=255, shared_bytes=98304) == (1, "registers")
    assert blocks_per_multiprocessor(a100, warps=4, registers=32, shared_bytes=49152) == (3, "shared memory")
    assert blocks_per_multiprocessor(a100, warps=16, registers=32, shared_bytes=0) == (4, "warps")
    assert blocks_per_multiprocessor(a100, warps=1, registers=16, shared_bytes=0) == (32, "blocks")


# Two loops, the second masked; a third that waits, and code that never runs.
CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/                   MUFU.EX2 R9, R9 ;
        /*0040*/              @!PT LDS RZ, [RZ] ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0070*/                   ISETP.GE.AND P1, PT, R0, R2, PT ;
        /*0080*/                   FSEL R8, R8, -INF, P1 ;
        /*0090*/                   MUFU.EX2 R9, R9 ;
        /*00a0*/                   STL [R1], R9 ;
        /*00b0*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*00c0*/              @!P1 BRA `(.L_x_2) ;
        /*00d0*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   NOP;
"""


def test_the_inner_loop_is_the_one_with_the_most_products():
    instructions, loops = parse(CODE)
    assert [each.name for each in instructions][-2:] == ["STG.E.128", "EXIT"]
    assert len(instructions) == 14 and len(loops) == 3
    loop = hot_loop(instructions, loops, lambda each: each.family == "HMMA")
    assert [each.family for each in loop] == ["LDSM", "HMMA", "MUFU", "BRA"]
    assert hot_loop(instructions, loops, lambda each: each.family == "HGMMA") is None
    per_row = hot_loop(instructions, loops, lambda each: each.family == "HMMA", inner_products=3)
    assert [each.family for each in per_row].count("HMMA") == 6, "each of the two loops runs three times"
    counts = count(loop)
    assert (counts.mma_count, counts.exps, counts.shared_bytes, counts.mma_share) == (1, 1, 512, 0.25)
    assert count(instructions).global_stores == {16: 1}


def test_factors_in_registers_are_told_from_those_in_shared_memory():
    instructions, _ = parse("""
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R88, gdesc[UR8], R88, gsb0 ;
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, R120, gdesc[UR8].tnspB, R24 ;
        /*0020*/                   UTCHMMA gdesc[UR18], gdesc[UR14], tmem[UR12], tmem[UR16], idesc[UR17], !UPT ;
        /*0030*/                   UTCHMMA tmem[UR14], gdesc[UR28], tmem[UR7], tmem[UR30], idesc[UR31], UPT ;
""")
    assert count(instructions).register_mma == {"HGMMA.64x128x16.F32.BF16": 1, "UTCHMMA": 1}


def test_limiter_arithmetic():
    """A block of 128 x 64 scores of 128 features on an A100, whose loop holds them once."""
    case = AuditCase(
        "attention", "forward", None, {}, {}, (), 4, 2, "bf16", dots=((128, 64, 128), (128, 128, 64)), exps=128 * 64
    )
    loop = Counts(1000, {"HMMA.16816.F32.BF16": 256}, {}, 0, 64, {}, {}, 0, shared_bytes=65536)
    prediction = predict(case, BY_CAPABILITY[80], MachineCode(255, 0, 0, 0, loop, loop))
    assert prediction.exps_per_score == 1
    assert prediction.clocks["mma"] == pytest.approx(4 * 128 * 64 * 128 / 2048, rel=1e-2)
    assert prediction.clocks["exp"] == 128 * 64 / 16
    assert prediction.clocks["shared memory"] == 65536 * 4 / 128
    assert prediction.clocks["issue"] == 1000 * 4 / 4
    assert prediction.limiter in ("mma", "shared memory")


def test_command(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bigmodel_kernels.cli", "audit", "--arch", "sm_80", "--op", "add_norm"]
    command += ["--backend", "triton"]
    command += ["--dtype", "bf16", "--json", str(path), "--markdown", str(tmp_path / "audit.md")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "Predicted from machine code, not measured" in result.stdout and "add_norm (rms 4096)" in result.stdout
    rows = json.loads(path.read_text())
    assert result.stderr.splitlines() == [
        f"{number}/{len(rows)} sm_80 {row['kernel']} bf16: 0 spills" for number, row in enumerate(rows, 1)
    ]
    assert isinstance(rows, list)
    assert rows and all(row["arch"] == "sm_80" and row["backend"] == "triton" and row["spills"] == 0 for row in rows)
    page = (tmp_path / "audit.md").read_text()
    assert (
        "    bigmodel audit --arch sm_80 --op add_norm --backend triton" in page
        and "## sm_80 (A100 SXM 80 GB), Triton, predicted" in page
    )


def page_of(name: str) -> tuple[dict[str, list[str]], dict[str, list[tuple[str, ...]]]]:
    """(the options of the command that made a page of docs/, by architecture the op, kernel and dtype of its rows)"""
    lines = (Path(__file__).parents[1] / "docs" / name).read_text().splitlines()
    (command,) = (line.split()[2:] for line in lines if line.startswith("    bigmodel audit "))
    options, rows = {}, {}
    for option, value in zip(command[::2], command[1::2], strict=True):
        options.setdefault(option, []).append(value)
    for line in lines:
        if line.startswith("## "):
            of_arch = rows.setdefault(line.split()[1], [])
        elif line.startswith("| ") and not line.startswith(("| op |", "| --- |")):
            of_arch.append(tuple(line[2:].split(" | ")[:3]))
    return options, rows


def test_the_page_has_the_rows_of_its_command():
    """So none is missing of a kernel that came later, and none is left of one that went. Of sm_75 the page says that it
    leaves out attention's options and large heads, which take longest to compile."""
    options, rows = page_of("audit.md")
    assert options.pop("--markdown") == ["docs/audit.md"] and options.pop("--backend") == ["triton"]
    dtypes = tuple(options.pop("--dtype"))
    assert not options and list(rows) == list(ARCHITECTURES)
    for arch in ARCHITECTURES:
        expected = [(case.op, case.name, case.dtype) for case in cases(arch, dtypes=dtypes)]
        left_out = [row for row in expected if row not in rows[arch]]
        assert rows[arch] == [row for row in expected if row not in left_out], arch
        assert all(arch == "sm_75" and op in ("attention", "attention_weights") for op, *_ in left_out), left_out
        assert {op for op, *_ in rows[arch]} == set(backends.OPS), arch


def test_the_page_of_fp32_has_the_rows_of_its_command():
    options, rows = page_of("audit-fp32.md")
    assert options.pop("--markdown") == ["docs/audit-fp32.md"] and options.pop("--backend") == ["triton"]
    archs, dtypes, ops = (options.pop(name, ARCHITECTURES) for name in ("--arch", "--dtype", "--op"))
    assert not options and dtypes == ["fp32", "tf32"] and list(rows) == list(archs)
    assert set(archs) == set(ARCHITECTURES)
    for arch in archs:
        assert rows[arch] == [(case.op, case.name, case.dtype) for case in cases(arch, tuple(ops), tuple(dtypes))], arch


def test_the_long_list_holds_the_short_one():
    for arch in ARCHITECTURES:
        short, long = (
            {(each.op, each.name, each.dtype) for each in cases(arch, every=every)} for every in (False, True)
        )
        assert len(short) < len(long) and short <= long


@pytest.mark.parametrize(
    "options, message",
    [
        (["--arch", "sm_42"], "[audit] 'sm_42' is no architecture that is known; expected one of sm_75"),
        (
            ["--op", "convolution"],
            "[audit] 'convolution' is no op that is known; expected one of attention",
        ),
        (["--dtype", "fp8"], "[audit] 'fp8' is no dtype that is known; expected one of fp32"),
    ],
)
def test_unknown_names(options, message):
    command = [sys.executable, "-c", "from bigmodel_kernels.cli import main; main()", "audit", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and message in " ".join(result.stderr.split())
