"""The audit of the CUDA kernels: what their machine code must show. Compiles some of csrc/cuda for two architectures;
`bigmodel audit --backend cuda` compiles it for all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the package triton, which brings the disassembler, is not installed")

from bigmodel_kernels.audit import OPS, audit, cases, cuda_cases, nvcc, reasons
from bigmodel_kernels.audit.architectures import BY_CAPABILITY

COMMAND = [sys.executable, "-c", "from bigmodel_kernels.cli import main; main()", "audit"]
WITHOUT = "; ".join(reasons("cuda"))
needs_compiler = pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)

# By architecture: the sources whose kernels are looked at. The two have all that differs: cp.async, the depth of a
# product, three stages or two.
SOURCES = {
    "sm_75": ("attention_forward", "attention_backward_key", "matrix_product", "attention_decode"),
    "sm_80": (
        "attention_forward",
        "attention_forward_plain",
        "attention_backward_plain",
        "attention_backward_query",
        "attention_backward_key",
        "matrix_product",
        "add_norm_forward",
        "add_norm_backward",
        "rotary",
        "attention_decode",
        "attention_decode_plain",
        "attention_decode_append",
    ),
}
# Instructions that spill, where there are any: heads of more than 128 features.
SPILLS_ABOVE_128 = {("sm_75", "grad_value options d256"): 5}


@pytest.fixture(scope="module", params=SOURCES)
def rows(request):
    if WITHOUT:
        pytest.skip(WITHOUT)
    selected = [each for each in cases(request.param, backends=("cuda",)) if each.source in SOURCES[request.param]]
    assert {each.source for each in selected} == set(SOURCES[request.param])
    return list(audit(request.param, selected))


def test_no_register_spills(rows):
    for row in rows:
        allowed = SPILLS_ABOVE_128.get((row.arch, row.kernel), 0) if (row.head_dim or 0) > 128 else 0
        assert row.spills <= allowed and (allowed or row.stack == 0), row


def test_products_run_on_the_tensor_cores(rows):
    """By mma.sync, so HMMA on every architecture; and as many as the tiles demand, in the inner loop once."""
    for row in rows:
        assert {name.split(".")[0] for name in row.mma} == ({"HMMA"} if row.mma_expected else set()), row
        assert row.loop_mma == row.mma_expected, row
        shape = "1688" if row.arch == "sm_75" or row.dtype == "tf32" else "16816"
        dtype = {"bf16": "F32.BF16", "fp16": "F32", "tf32": "F32.TF32"}.get(row.dtype)
        assert set(row.mma) <= {f"HMMA.{shape}.{dtype}"}, row


def test_aligned_inputs_are_loaded_128_bits_at_a_time(rows):
    """By bytes of the instructions, of which a loop's count once; what is left is a number per row or block (of dK and
    dV two for each query of a tile), masks, and of decoding the query, lengths and pages. True fp32 products of
    attention and linear layers, and what appends to a cache, read their operands, of any strides, one by one."""
    for row in rows:
        if row.op == "attention_decode" and "append" not in row.kernel:
            loaded = {int(width): int(width) * number for width, number in row.global_loads.items()}
            assert loaded[128] >= 0.6 * sum(loaded.values()), row
        elif row.mma or row.op in ("add_norm", "rotary"):
            loaded = {int(width): int(width) * number for width, number in row.global_loads.items()}
            wide = sum(size for width, size in loaded.items() if width >= 128)
            least = 0.1 if "options" in row.kernel else 0.7 if "grad_key_value" in row.kernel else 0.8
            assert wide >= least * sum(loaded.values()), row


def test_one_exponential_per_score(rows):
    """And a few for rows that are rescaled; with options also those of the softcap's tanh."""
    for row in rows:
        if row.exps_per_score is not None:
            assert 0.99 <= row.exps_per_score < (1.2 if "causal" in row.kernel else 3.2), row


def test_fits_the_architecture(rows):
    for row in rows:
        architecture = next(each for each in BY_CAPABILITY.values() if each.name == row.arch)
        assert row.static_shared + row.dynamic_shared <= architecture.block_shared_bytes, row
        assert row.blocks_per_multiprocessor >= 1, row
        assert row.backend == "cuda" and row.predicted
        assert row.clocks[row.limiter] == max(row.clocks.values()), row  # rounded, two units may take equally long


def test_the_long_list_holds_the_short_one():
    for capability in BY_CAPABILITY:
        short, long = (set(cuda_cases.audit_cases(capability, every)) for every in (False, True))
        assert short < long
        names = [(each.name, each.dtype) for each in long]
        assert len(set(names)) == len(names)


@needs_compiler
def test_command(tmp_path):
    path, page = tmp_path / "rows.json", tmp_path / "audit.md"
    options = ["--arch", "sm_80", "--op", "add_norm", "--dtype", "bf16", "--backend", "cuda"]
    run = [*COMMAND, *options, "--json", str(path), "--markdown", str(page)]
    output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert "sm_80 (A100 SXM 80 GB), CUDA C++. Predicted from machine code, not measured" in output
    rows = json.loads(path.read_text())
    assert {row["kernel"] for row in rows} == {
        f"{name} ({width})" for name in ("add_norm", "add_norm_backward") for width in (1024, 4096)
    }
    assert all(row["backend"] == "cuda" for row in rows)
    assert page.read_text().startswith("# Audit of the CUDA C++ kernels\n")


def test_the_page_shows_every_op_and_no_spills():
    """docs/audit-cuda.md, on every architecture; attention_varlen's kernels are attention's."""
    page = (Path(__file__).resolve().parent.parent / "docs/audit-cuda.md").read_text()
    assert page.startswith("# Audit of the CUDA C++ kernels\n\nPredicted from machine code, not measured: ")
    names = [each.name for each in BY_CAPABILITY.values()]
    options = " ".join(f"--arch {name}" for name in names)
    assert f"\n    bigmodel audit --backend cuda {options} --markdown" in page and "attention_varlen" in page
    architectures = page.split("\n## ")[1:]
    assert [each.split()[0] for each in architectures] == names
    for name, each in zip(names, architectures, strict=True):
        heading, _, *rows = [line.strip("| ").split(" | ") for line in each.splitlines() if line.startswith("| ")]
        assert {row[0] for row in rows} == {op for op in OPS if op != "attention_varlen"}, name
        spills = {
            (name, row[1]): int(row[heading.index("spills")]) for row in rows if row[heading.index("spills")] != "0"
        }
        assert spills == {row: count for row, count in SPILLS_ABOVE_128.items() if row[0] == name}


def test_without_nvcc(monkeypatch, tmp_path):
    """A named backend fails in words; otherwise it is left out, and the command says so."""
    monkeypatch.setattr(nvcc, "nvcc", lambda: None)
    with pytest.raises(ValueError, match=r"\[audit\] backend 'cuda': nvcc was found neither in NVCC, on the PATH"):
        cases("sm_80", backends=("cuda",))
    monkeypatch.setattr(nvcc, "SOURCES", tmp_path)
    assert "sources are not beside the package" in reasons("cuda")[1]


def test_an_unknown_backend():
    with pytest.raises(
        ValueError, match=r"\[audit\] 'metal' is no backend that is known; expected one of triton, cuda"
    ):
        cases("sm_80", backends=("metal",))


@needs_compiler
def test_a_compiler_that_fails(monkeypatch, tmp_path):
    source = tmp_path / "cuda"
    source.mkdir()
    (source / "broken.cu").write_text("this is not C++")
    monkeypatch.setattr(nvcc, "SOURCES", tmp_path)
    with pytest.raises(ValueError, match=r"\[audit\] nvcc failed on broken.cu for sm_80:"):
        nvcc.compiled("broken", 80)
