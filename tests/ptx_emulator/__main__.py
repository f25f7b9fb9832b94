"""`python -m tests.ptx_emulator attention --q 97 --k 133 ...`: one call of one's own on the emulated CUDA kernels.

Exit status 0: it ran and nothing was found; 1: hazards; 2: it could not run, and one line on stderr says why."""

import json
import sys
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bigmodel_kernels.testing import AddNormCase, AttentionCase, FeedForwardCase, LinearCase
from bigmodel_kernels.testing.layouts import LAYOUTS

from . import comparing, planted
from .measuring import CAPABILITIES, Measured, measure

app = typer.Typer(
    help="One call on the project's CUDA kernels, executed by the PTX emulator: its error against float64 beside the "
    "reference's own in that dtype, the hazards found, and counters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class DType(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Causal(StrEnum):
    none = "none"
    top_left = "top_left"
    bottom_right = "bottom_right"


class Norm(StrEnum):
    layer = "layer"
    rms = "rms"


class Mask(StrEnum):
    """What AttentionCase can draw."""

    bool = "bool"
    bool_rows = "bool_rows"
    float = "float"
    float_query = "float_query"
    float_inf = "float_inf"


Layout = StrEnum("Layout", {name: name for name in LAYOUTS})
Capability = StrEnum("Capability", {f"sm_{a}{b}": f"{a}.{b}" for a, b in CAPABILITIES})
WIDTH = 120  # of tables that no terminal shows
TORCH_DTYPES = {DType.fp32: torch.float32, DType.bf16: torch.bfloat16, DType.fp16: torch.float16}

Count = Annotated[int, typer.Option(min=0)]
Size = Annotated[int, typer.Option(min=1)]
Type = Annotated[DType, typer.Option(help="Of the tensors.")]
Backward = Annotated[bool, typer.Option("--backward", help="Also the backward pass: the worst of the gradients.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON: error, reference_error, hazards, counters.")]
Device = Annotated[Capability, typer.Option(help="Compute capability that the host code is told.")]


def report(case, dtype: DType, backward: bool, as_json: bool, device: Capability) -> None:
    """Runs the case and prints what came of it. Exit status 1 if there were hazards."""
    major, minor = device.value.split(".")
    measured = measure(case, TORCH_DTYPES[dtype], backward, (int(major), int(minor)))
    if as_json:
        print(json.dumps(measured.as_json()))
    else:
        _print(measured, dtype)
    raise typer.Exit(1 if measured.hazards else 0)


def _print(measured: Measured, dtype: DType) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(
        f"{measured.of}: largest error {measured.error:.3e}; the reference's in {dtype} {measured.reference_error:.3e}"
    )
    console.print(f"hazards: {len(measured.hazards) or 'none'}")
    for hazard in measured.hazards:
        console.print(f"  {hazard}", markup=False)
    for kernel, counted in measured.counters.items():
        table = Table(
            title=f"{kernel}: launches {counted['launches']}, blocks {counted['blocks']}", title_justify="left"
        )
        table.add_column("instructions", no_wrap=True)
        for heading in ("by warps", "by lanes", "bank passes", "without conflicts", "sectors", "bytes"):
            table.add_column(heading, justify="right", overflow="fold")
        for name, each in counted["classes"].items():
            figures = (each[key] for key in ("issued", "lanes", "wavefronts", "ideal_wavefronts", "sectors", "bytes"))
            table.add_row(name, *(f"{figure:,}" if figure else "" for figure in figures))
        console.print(table)


@app.command()
def attention(
    batch: Count = 1,
    heads: Count = 4,
    kv_heads: Annotated[int | None, typer.Option(min=0)] = None,
    q: Annotated[int, typer.Option("--q", min=0, help="Queries.")] = 64,
    k: Annotated[int, typer.Option("--k", min=0, help="Keys.")] = 64,
    head_dim: Size = 64,
    value_dim: Annotated[int | None, typer.Option(min=1)] = None,
    dtype: Type = DType.bf16,
    causal: Causal = Causal.none,
    window_left: int | None = None,
    window_right: int | None = None,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: bool = False,
    sinks: bool = False,
    dropout: float = 0.0,
    layout: Layout = Layout.contiguous,
    backward: Backward = False,
    as_json: Json = False,
    device: Device = Capability["sm_80"],
) -> None:
    """One call of attention."""
    case = AttentionCase(
        "command",
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_len=q,
        kv_len=k,
        head_dim=head_dim,
        value_dim=value_dim,
        mask=mask and mask.value,
        causal=False if causal is Causal.none else causal.value,
        window=None if window_left is None and window_right is None else (window_left, window_right),
        scale=scale,
        softcap=softcap,
        alibi="heads" if alibi else None,
        sinks=sinks,
        dropout_p=dropout,
        layout=layout.value,
    )
    report(case, dtype, backward, as_json, device)


@app.command()
def linear(
    rows: Count = 64,
    in_features: Size = 64,
    out_features: Size = 64,
    bias: bool = True,
    activation: str | None = None,
    residual: bool = False,
    dtype: Type = DType.bf16,
    backward: Backward = False,
    as_json: Json = False,
    device: Device = Capability["sm_80"],
) -> None:
    """One call of linear."""
    case = LinearCase("command", (rows,), in_features, out_features, bias, activation, residual)
    report(case, dtype, backward, as_json, device)


@app.command()
def feed_forward(
    rows: Count = 64,
    width: Size = 64,
    hidden: Size = 128,
    activation: str = "relu",
    gate: Annotated[str | None, typer.Option(help="input or hidden.")] = None,
    bias: bool = True,
    dropout: float = 0.0,
    dtype: Type = DType.bf16,
    backward: Backward = False,
    as_json: Json = False,
    device: Device = Capability["sm_80"],
) -> None:
    """One call of feed_forward."""
    case = FeedForwardCase("command", (rows,), width, hidden, None, activation, gate, bias, dropout_p=dropout)
    report(case, dtype, backward, as_json, device)


@app.command()
def add_norm(
    rows: Count = 64,
    width: Size = 64,
    kind: Norm = Norm.layer,
    residual: bool = True,
    dtype: Type = DType.bf16,
    backward: Backward = False,
    as_json: Json = False,
    device: Device = Capability["sm_80"],
) -> None:
    """One call of add_norm."""
    case = AddNormCase("command", (rows,), width, kind.value, residual, bias=kind is Norm.layer)
    report(case, dtype, backward, as_json, device)


@app.command()
def counters(
    call: Annotated[list[str] | None, typer.Option(help="Only calls whose name holds this; may be repeated.")] = None,
    triton: Annotated[bool, typer.Option(help="Also the Triton kernels, as compiled for sm_80.")] = True,
) -> None:
    """Instructions, by warps, that the default kernels execute for the same calls on both backends; as Markdown."""
    names = [name for name in comparing.names() if not call or any(each in name for each in call)]
    if not names:
        raise ValueError(
            f"[counters] no call has such a name; expected a part of one of {', '.join(comparing.names())}"
        )
    found = [count for name in names for count in comparing.counts(name, triton)]
    print("\n".join(comparing.table(found)))


@app.command()
def faults() -> None:
    """Plants faults in kernels and prints what is found of each, as Markdown."""
    print("\n".join(planted.table()))


def main(arguments: list[str] | None = None) -> None:
    """What an op, the host code or the emulator refuses is one line, not a traceback."""
    try:
        app(arguments)
    except (ValueError, RuntimeError) as error:
        if not str(error).startswith("["):  # not one of ours: somebody has to see where it came from
            raise
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
