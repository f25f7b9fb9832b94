"""The benchmark suite measures what it says, keeps failures, and writes records that can be read again. No timings."""

import io
import json
import os
import platform
import shutil
import time

import pytest
import torch
from bigmodel_bench import compare, harness, ports, report, suite
from bigmodel_bench.case import Case, random_tensor
from bigmodel_bench.device import data_sheet, device_named
from bigmodel_bench.machine import Ceiling, measure_ceilings, thread_counts
from bigmodel_bench.memory import peak_extra_bytes
from bigmodel_bench.record import load_record, new_record
from bigmodel_bench.run import run_case
from rich.console import Console

import bigmodel_kernels as bmk

MEBIBYTE = 1 << 20


def case_of(contenders, differentiable=(), dtype="fp32"):
    return Case(
        op="double",
        shape="100",
        dtype=dtype,
        flops=100,
        bytes=800,
        make_inputs=lambda generator: {
            "x": random_tensor(generator, dtype, 100),
            "grad_output": random_tensor(generator, dtype, 100),
        },
        contenders=contenders,
        truth=lambda inputs: inputs["x"] * 2,
        differentiable=differentiable,
    )


def double(inputs):
    return inputs["x"] * 2


def fail(inputs):
    raise RuntimeError("no kernel for this\nand a second line")


def record_of(*rows):
    record = new_record([Ceiling(1, 1e11, 1e10), Ceiling(2, 2e11, 2e10)], quick=True)
    record.rows.extend(rows)
    return record


def printed(print_to, *arguments):
    console = Console(width=report.PLAIN_WIDTH, record=True, file=io.StringIO())
    print_to(*arguments, console)
    return console.export_text()


def test_contenders_take_turns_and_go_first_equally_often():
    order = []
    calls = {name: lambda turn, name=name: (order.append(name), time.sleep(0.002)) for name in ("a", "b")}
    results = harness.measure(calls, budget_s=0.1)
    rounds = [tuple(order[start : start + 2]) for start in range(4, len(order) - 1, 2)]  # after the warm-up
    assert all(set(pair) == {"a", "b"} for pair in rounds)
    firsts = [pair[0] for pair in rounds]
    assert abs(firsts.count("a") - firsts.count("b")) <= 1
    assert results["a"].samples == results["b"].samples >= harness.FEWEST_ROUNDS


def test_short_calls_are_timed_many_at_once_and_turns_go_on():
    turns = []
    timing = harness.measure({"a": turns.append}, budget_s=0.01)["a"]
    assert timing.calls_per_sample > 100
    assert turns == list(range(len(turns)))
    assert timing.q1_s <= timing.median_s <= timing.q3_s < 1e-4


def test_a_first_call_that_is_slow_does_not_make_short_calls_be_timed_one_by_one():
    """It may load code, pack weights or wake threads."""
    clock = lambda call, turn, calls: 20_000_000 if turn == 0 else 10_000 * calls  # noqa: E731
    timing = harness.measure({"cold": lambda turn: None}, 0.01, clock)["cold"]
    assert timing.calls_per_sample == 100
    assert timing.median_s == pytest.approx(1e-5)


def test_a_call_longer_than_the_budgets_is_made_once():
    calls = []
    timing = harness.measure({"slow": lambda turn: (calls.append(turn), time.sleep(0.05))}, budget_s=0.01)["slow"]
    assert len(calls) == timing.samples == 1
    assert timing.spread == 0


def test_a_contender_that_fails_later_leaves_the_others_running():
    def fails_on_the_third(turn):
        if turn == 2:
            raise MemoryError("full")
        time.sleep(0.002)

    results = harness.measure({"a": fails_on_the_third, "b": lambda turn: time.sleep(0.002)}, budget_s=0.02)
    assert isinstance(results["a"], MemoryError)
    assert results["b"].samples >= harness.FEWEST_ROUNDS


@pytest.mark.parametrize(
    ("size", "copies"), [(1, 1), (2 * MEBIBYTE, 1), (3 * MEBIBYTE, 8), (20 * MEBIBYTE, 4), (1 << 40, 1)]
)
def test_large_inputs_are_rotated_until_the_cache_is_full_twice(size, copies):
    assert harness.rotations(size, last_level_cache_bytes=32 * MEBIBYTE) == copies


def test_peak_memory_counts_what_was_held_at_once():
    def two_then_one():
        first = torch.empty(3 * MEBIBYTE, dtype=torch.uint8)
        second = torch.empty(2 * MEBIBYTE, dtype=torch.uint8)
        del first
        return second, torch.empty(MEBIBYTE, dtype=torch.uint8)

    torch.empty(1)
    assert peak_extra_bytes(two_then_one) == pytest.approx(5 * MEBIBYTE, abs=4096)


def test_peak_memory_says_nothing_on_stderr(capfd):
    peak_extra_bytes(lambda: torch.ones(10))
    assert capfd.readouterr().err == ""


def test_a_row_holds_error_against_float64_memory_and_time():
    row = run_case(case_of({"ours": double, "torch": lambda inputs: inputs["x"] * 2.5}), budget_s=0.01)
    assert row.results["ours"].error == 0
    assert row.results["torch"].error == pytest.approx(0.25, rel=1e-5)
    assert row.results["ours"].peak_extra_bytes == pytest.approx(400, abs=200)
    assert row.results["ours"].timing.samples >= harness.FEWEST_ROUNDS


def test_the_error_covers_gradients_too():
    def right_value_wrong_gradient(inputs):
        return inputs["x"] + inputs["x"].detach()

    contenders = {"ours": double, "torch": right_value_wrong_gradient}
    forward = run_case(case_of(contenders), budget_s=0.01)
    both = run_case(case_of(contenders, differentiable=("x",)), budget_s=0.01)
    assert forward.results["torch"].error == 0
    assert both.pass_name == "fwd+bwd"
    assert both.results["ours"].error == 0
    assert both.results["torch"].error == pytest.approx(0.5)


def test_a_result_that_is_nan_counts_as_a_failure():
    row = run_case(case_of({"ours": lambda inputs: inputs["x"] * float("nan"), "torch": double}), budget_s=0.01)
    assert "NaN" in row.results["ours"].failure
    assert row.results["torch"].failure is None


@pytest.mark.parametrize("failing", ["ours", "torch"])
def test_a_failing_contender_stays_in_table_record_and_summary(failing, tmp_path):
    contenders = {"ours": double, "torch": double} | {failing: fail}
    record = record_of(run_case(case_of(contenders), budget_s=0.01))
    record.save(tmp_path / "record.json")
    again = load_record(tmp_path / "record.json")
    assert again == record
    failure = "RuntimeError: no kernel for this"
    assert json.loads((tmp_path / "record.json").read_text())["rows"][0]["results"][failing]["failure"] == failure
    table = printed(report.print_rows, again.rows, again.ceiling)
    assert "failed [1]" in table and failure in table and "double" in table
    assert failure in report.markdown(again)
    assert "failed: 1" in report.summary(again.rows)
    assert "failed" in printed(compare.print_comparison, again, record)


def test_percent_of_peak_takes_whichever_limit_is_nearer():
    row = run_case(case_of({"ours": double, "torch": double}), budget_s=0.01)
    seconds = row.results["ours"].timing.median_s
    assert report.percent_of_peak(row, Ceiling(1, 1.0, 1e30)) == (pytest.approx(100 * 100 / seconds), "c")
    assert report.percent_of_peak(row, Ceiling(1, 1e30, 1.0)) == (pytest.approx(100 * 800 / seconds), "m")


@pytest.mark.parametrize("op", suite.OPS)
def test_every_case_of_every_op_is_named_once(op):
    for quick in (True, False):
        keys = [case.key for case in suite.select([op], quick=quick)]
        assert len(keys) == len(set(keys)) > 0
        assert all(case.flops > 0 and case.bytes > 0 for case in suite.select([op], quick=quick))


@pytest.mark.parametrize("op", [op for op in suite.OPS if op not in ("attention_weights", "attention_decode")])
def test_quick_rows_have_both_passes_in_every_dtype(op):
    rows = {(case.dtype, case.pass_name) for case in suite.select([op], quick=True)}
    assert rows == {(dtype, name) for dtype in ("fp32", "bf16", "fp16") for name in ("fwd", "fwd+bwd")}


@pytest.mark.parametrize("op", suite.OPS)
def test_every_op_agrees_with_torch_and_float64(op):
    """The smallest forward and backward case: both contenders compute the same thing, and so does truth."""
    cases = suite.select([op], ["fp32"])
    smallest = {case.pass_name: case for case in sorted(cases, key=lambda case: -case.flops)}
    for case in smallest.values():
        row = run_case(case, budget_s=0.01)
        for name, result in row.results.items():
            assert result.failure is None, (row.key, name, result.failure)
            assert result.error < 1e-5, (row.key, name)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"^\[bench\] 'attentoin' is unknown: expected one of attention"):
        suite.select(["attentoin"])
    with pytest.raises(ValueError, match=r"^\[bench\] 'fp8' is unknown: expected one of fp32"):
        suite.select([], ["fp8"])


def test_torch_names_of_dtypes_are_understood():
    assert [case.key for case in suite.select(["linear"], ["bfloat16"])] == [
        case.key for case in suite.select(["linear"], ["bf16"])
    ]


def test_thread_counts_end_with_the_one_in_use():
    assert [thread_counts(threads) for threads in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_ceilings_are_plausible_and_leave_target_and_threads_alone():
    from bigmodel_kernels import _C

    threads, target = torch.get_num_threads(), _C.cpu_target()
    ceilings = measure_ceilings(1)
    assert [ceiling.threads for ceiling in ceilings] == [1]
    assert 1e8 < ceilings[0].flops_per_s < 1e13
    assert 1e7 < ceilings[0].bytes_per_s < 1e13
    for rate in (ceilings[0].bf16_dot_flops_per_s, ceilings[0].int8_dot_ops_per_s, ceilings[0].l2_bytes_per_s):
        assert rate is None or 1e7 < rate < 1e16
    assert (torch.get_num_threads(), _C.cpu_target()) == (threads, target)


def test_dot_products_have_a_peak_exactly_where_the_target_has_them():
    from bigmodel_kernels import _C

    active = _C.cpu_target()
    try:
        for target in _C.supported_cpu_targets():
            _C.set_cpu_target(target)
            bf16, int8 = _C.bf16_dot_peak_flops(1, 0.02), _C.int8_dot_peak_ops(1, 0.02)
            assert (bf16 is not None) == (target in ("amx", "avx512bf16", "neon_bf16")), target
            assert (int8 is not None) == (target in ("amx", "avx512bf16")), target
            assert bf16 is None or bf16 > 1e8
    finally:
        _C.set_cpu_target(active)


def test_buffers_of_any_size_are_read():
    from bigmodel_kernels import _C

    for size in (64 << 10, 100_000, 256 << 10, (1 << 20) + 8, 3 << 20):
        assert _C.read_bandwidth(1, size, 0.03) > 1e7, size


@pytest.mark.parametrize(
    "call",
    [
        lambda peaks: peaks.fma_peak_flops(0),
        lambda peaks: peaks.fma_peak_flops(10_000),
        lambda peaks: peaks.fma_peak_flops(1, seconds=0),
        lambda peaks: peaks.bf16_dot_peak_flops(0),
        lambda peaks: peaks.int8_dot_peak_ops(1, seconds=-1),
        lambda peaks: peaks.read_bandwidth(1, bytes=8),
        lambda peaks: peaks.read_bandwidth(1, bytes=-1),
        lambda peaks: peaks.read_bandwidth(1, seconds=float("nan")),
    ],
)
def test_bad_arguments_of_the_probes_are_refused(call):
    from bigmodel_kernels import _C

    with pytest.raises(
        ValueError, match=r"^\[(fma_peak_flops|bf16_dot_peak_flops|int8_dot_peak_ops|read_bandwidth)\] "
    ):
        call(_C)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "something else"}'])
def test_files_that_are_no_records_are_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"^\[compare\] "):
        load_record(tmp_path / "x.json")


def test_comparison_pairs_rows_and_draws(tmp_path):
    fast = run_case(case_of({"ours": double, "torch": double}), budget_s=0.01)
    other = run_case(case_of({"ours": double, "torch": double}, dtype="bf16"), budget_s=0.01)
    first, second = record_of(fast, other), record_of(fast)
    text = printed(compare.print_comparison, first, second)
    assert "1.00x" in text and "1 rows are in one of the two only" in text
    compare.draw(first, second, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"^\[compare\] the two records share no row"):
        compare.draw(record_of(fast), record_of(other), tmp_path / "none.png")


class Elsewhere:
    """A device that is this processor under another clock, memory and name: what a CUDA device changes, without one."""

    name = "cpu"
    cache_bytes = 1

    def __init__(self, backend=None, others=()):
        self.backend = backend
        self.others = others
        self.sampled = 0

    def ceilings(self, threads, progress):
        return data_sheet("NVIDIA H100 80GB HBM3")

    def peak_extra_bytes(self, call):
        call()
        return 12345

    def sample_ns(self, call, first_turn, calls):
        self.sampled += calls
        for turn in range(first_turn, first_turn + calls):
            call(turn)
        return 2_000_000 * calls

    def describe(self):
        return "NVIDIA H100 80GB HBM3, backend triton"


def test_a_device_brings_clock_memory_cache_and_backend():
    seen = []

    def ours(inputs):
        seen.append(bmk.backends.resolve("attention", torch.device("cpu"), torch.float32))
        return double(inputs)

    device = Elsewhere(backend="reference")
    row = run_case(case_of({"ours": ours, "torch": double, "torch other": fail}), 0.01, device=device)
    assert row.results["ours"].timing.median_s == 0.002 and device.sampled > 6
    assert row.results["torch"].peak_extra_bytes == 12345
    assert row.rotations == 1  # inputs of many times its cache
    assert all(backend is bmk.reference for backend in seen)
    assert row.results["torch other"].failure == "RuntimeError: no kernel for this"


def test_every_backend_of_a_device_is_a_contender():
    """Where both kinds of kernels for GPUs are there, both are measured: ours is what runs by default."""
    seen = {}

    def ours(inputs):
        found = bmk.backends.resolve("attention", torch.device("cpu"), torch.float32)
        seen[found] = seen.get(found, 0) + 1
        return double(inputs)

    device = Elsewhere(backend="cpu", others=("reference",))
    row = run_case(case_of({"ours": ours, "torch": double}), 0.01, device=device)
    assert list(row.results) == ["ours", "torch", "ours (reference)"]
    assert all(result.timing.median_s == 0.002 for result in row.results.values())
    assert len(seen) == 2 and bmk.reference in seen and min(seen.values()) > 1
    assert [line[4] for line in report.other_contenders([row])] == ["ours (reference)"]


def test_two_backends_that_a_device_has_are_both_found(monkeypatch):
    reasons = {"cuda": [], "triton": []}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(bmk, "info", lambda: {"backends": reasons})
    found = device_named("cuda")
    assert (found.backend, found.others) == ("cuda", ("triton",))
    reasons["cuda"] = ["not built"]
    found = device_named("cuda")
    assert (found.backend, found.others) == ("triton", ())


def test_other_contenders_have_a_table_of_their_own(tmp_path):
    contenders = {"ours": double, "torch": double, "torch math": lambda inputs: inputs["x"] * 2.5, "torch flash": fail}
    row = run_case(case_of(contenders, dtype="bf16"), 0.01, device=Elsewhere())
    record = new_record(Elsewhere().ceilings(1, print), quick=True, device=Elsewhere().describe())
    record.rows.append(row)
    record.save(tmp_path / "record.json")
    again = load_record(tmp_path / "record.json")
    assert again == record
    heading = "\n".join(report.heading(again))
    assert (
        "NVIDIA H100 80GB HBM3, backend triton; its data sheet's peaks: 989 TFLOP/s in 16 bits, 67 in fp32" in heading
    )
    for text in (printed(report.print_rows, again.rows, again.ceiling), report.markdown(again)):
        assert "torch math" in text and "1.00x" in text
        assert "failed: RuntimeError: no kernel for this" in text
    assert "failed: 1" in report.summary(again.rows)


def test_percentages_are_of_the_peak_of_the_dtype():
    (ceiling,) = data_sheet("NVIDIA H100 80GB HBM3")
    half = run_case(case_of({"ours": double}, dtype="fp16"), 0.01, device=Elsewhere())
    single = run_case(case_of({"ours": double}), 0.01, device=Elsewhere())
    for row, peak in ((half, 989e12), (single, 67e12)):
        row.flops = 10**12
        assert report.percent_of_peak(row, ceiling) == (pytest.approx(100 * 1e12 / peak / 0.002), "c")


def test_a_device_of_another_name_has_no_percentages():
    assert data_sheet("NVIDIA H100") == []
    row = run_case(case_of({"ours": double, "torch": double}), 0.01, device=Elsewhere())
    record = new_record([], quick=True, device="something new")
    record.rows.append(row)
    assert record.ceiling is None
    assert "its peaks are not listed" in "\n".join(report.heading(record))
    assert dict(zip(report.COLUMNS, report.line_of(row, None).cells, strict=True))["% peak"] == ""
    assert "1.00x" in printed(compare.print_comparison, record, record)


@pytest.mark.parametrize("op", suite.OPS)
def test_cuda_devices_have_cases_of_their_own(op):
    cases = suite.select([op], device="cuda:1")
    keys = [case.key for case in cases]
    assert len(keys) == len(set(keys)) > 0
    assert {case.dtype for case in cases} == {"fp32", "bf16", "fp16"}
    flops = {device: max(case.flops for case in suite.select([op], device=device)) for device in ("cpu", "cuda")}
    assert flops["cuda"] > flops["cpu"]


def test_attention_on_cuda_meets_everything_that_torch_has():
    names = {name for case in suite.select(["attention"], device="cuda") for name in case.contenders}
    assert names == {"ours", "torch", "torch flash", "torch efficient", "torch cudnn", "torch math", "torch flex"}


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"padding": True}, {"causal": True, "kv_heads": 1}], ids=str)
def test_attention_contenders_of_cuda_agree(options):
    """Those of torch's that run on a CPU; the rest must say why they do not. FlexAttention without its compiler."""
    from bigmodel_bench.bench_attention import Shape, contenders, make_inputs
    from bigmodel_bench.torch_attention import with_flex

    shape = Shape(2, 2, 128, 16, **options)
    inputs = make_inputs(shape, "fp32", torch.Generator().manual_seed(0))
    functions = contenders(shape, "cuda") | {"torch flex": with_flex(shape.causal, shape.lengths, compiled=False)}
    with torch.no_grad():
        expected = functions.pop("ours")(inputs)
        for name, function in functions.items():
            if name in ("torch efficient", "torch cudnn"):
                with pytest.raises(RuntimeError, match="[Nn]o (available kernel|viable backend)"):
                    function(inputs)
            else:
                torch.testing.assert_close(function(inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"^\[bench\] 'gpu' is no device that is known; expected cpu, cuda or cuda:<number>"),
        ("cuda:x", r"^\[bench\] 'cuda:x' is no device that is known"),
        ("cuda:99", r"^\[bench\] there is no device cuda:99: torch .* sees \d+ CUDA devices"),
    ],
)
def test_devices_that_are_not_there_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        device_named(name)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(os.environ.get("CC", "cc")), reason="no compiler for x86-64"
)
def test_every_instruction_of_the_ports_assembles(tmp_path):
    assert ports.build(tmp_path).stat().st_mode & 0o100
    text = ports.source()
    mnemonics = [pattern.split()[0] for pattern in ports.INSTRUCTIONS.values()]
    uses = 2 * ports.TOGETHER + ports.TOGETHER // 2  # alone, beside as many multiply-adds, half as many beside them
    for mnemonic in mnemonics:
        assert text.count(mnemonic) == uses * mnemonics.count(mnemonic)
