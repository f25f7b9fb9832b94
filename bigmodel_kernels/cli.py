"""`bigmodel`: info, bench, compare, audit, tune, train and generate. What they do lives elsewhere; this only talks."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .training.options import TrainingOptions
from .training.text_command import SHARED, generate, train_text

app = typer.Typer(
    help="Fused attention and feed-forward kernels for PyTorch.", no_args_is_help=True, pretty_exceptions_enable=False
)
DEFAULTS = TrainingOptions()
INTERRUPTED = 130  # what a shell reports after Ctrl-C


app.command()(generate)


def main() -> None:
    """Entry point. An error of ours is one line on stderr and exit status 1, not a traceback."""
    try:
        app()
    except ValueError as error:
        if not str(error).startswith("["):  # not one of ours: somebody has to see where it came from
            raise
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


@app.command()
def info() -> None:
    """This machine, its CPU targets, versions, and which backends run here or why not."""
    import platform

    import bigmodel_kernels as bmk
    from bigmodel_kernels import _C
    from bigmodel_kernels.machine import format_bytes, this_machine

    machine, facts = this_machine(), bmk.info()
    build = _C.build_info()
    supported = _C.supported_cpu_targets()
    targets = [
        f"{name} (active)"
        if name == _C.cpu_target()
        else f"{name}{'' if name in supported else ' (not on this machine)'}"
        for name in _C.compiled_cpu_targets()
    ]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("processor", f"{machine.processor}, {machine.architecture}")
    table.add_row("cores", f"{machine.usable_cores} usable of {machine.cores}; torch uses {facts['threads']} threads")
    table.add_row("caches", machine.describe_caches())
    table.add_row("memory", format_bytes(machine.memory_bytes) if machine.memory_bytes else "unknown")
    table.add_row("system", machine.system)
    table.add_row(
        "versions", f"bigmodel_kernels {bmk.__version__}, torch {facts['torch']}, Python {platform.python_version()}"
    )
    table.add_row(
        "build", f"{build['compiler']}, torch {build['torch']} headers, torch's stable ABI {build['torch_stable_abi']}"
    )
    table.add_row("CPU targets", ", ".join(targets))
    for name, reasons in facts["backends"].items():
        table.add_row(f"backend {name}", "; ".join(reasons) or "[green]available[/green]")
    for device, launches in facts["launches"].items():
        table.add_row(f"triton on {device}", launches)
    Console().print(table, highlight=False)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="The short suite: some minutes on two cores.")] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only fp32, bf16 or fp16; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads, for us and torch alike.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<number>.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Also write the record to this file.", dir_okay=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the table to this file, as Markdown.", dir_okay=False)
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Against other engines instead: all, torch, or names with commas between.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Whole models instead: all, or names of minilm, training, generation, decode and cross_entropy with "
            "commas between."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --peers: also draw the roofline to this PNG.", dir_okay=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --peers: go on with the record in --json.")] = False,
) -> None:
    """Times every op against what a PyTorch user would call, with errors against float64 and memory."""
    if models:
        if quick or op or dtype or device != "cpu" or json or peers or plot or resume:
            raise ValueError("[bench] --models takes no other option than --threads and --markdown")
        _bench_models(models, threads, markdown)
        return
    if peers:
        _bench_peers(peers, quick, op or (), dtype or (), threads, json, markdown, plot, resume)
        return
    if plot or resume:
        raise ValueError("[bench] --plot and --resume belong to --peers")
    from bigmodel_bench import report, suite
    from bigmodel_bench.device import device_named

    where = device_named(device)
    cases = suite.select(op or (), dtype or (), quick, device)
    console = report.report_console()
    with _progress(console) as progress:
        task = progress.add_task("starting", total=len(cases))
        record = suite.run_suite(
            cases,
            quick,
            threads,
            where,
            on_start=lambda record: report.print_heading(record, console),
            on_case=lambda case: progress.update(task, description=" ".join(case.key)),
            on_row=lambda row: progress.advance(task),
            on_progress=lambda text: progress.update(task, description=text),
        )
    report.print_rows(record.rows, record.ceiling, console)
    for line in report.summary(record.rows):
        console.print(line, highlight=False, markup=False)
    console.print(f"{len(record.rows)} rows in {record.seconds:.0f} s", highlight=False)
    if json:
        record.save(json)
    if markdown:
        markdown.write_text(report.markdown(record))
    if any(row.results["ours"].failure for row in record.rows):
        raise typer.Exit(1)


def _bench_peers(peers: str, quick: bool, ops, dtypes, threads, json, markdown, plot, resume: bool) -> None:
    """Ours against the fastest of the peers, row by row; the record is saved after every row."""
    from bigmodel_bench import report as tables
    from bigmodel_bench.peers import plot as picture
    from bigmodel_bench.peers import report, suite

    selected = suite.select(ops, dtypes, quick)
    console = tables.report_console()
    with _progress(console) as progress:
        task = progress.add_task("starting", total=None)
        record = suite.run_suite(
            selected,
            peers,
            quick,
            threads,
            json=json,
            resume=resume,
            on_row=lambda row: progress.advance(task),
            on_progress=lambda text: progress.update(task, description=text),
        )
    for line in report.peer_heading(record):
        console.print(line, highlight=False, markup=False)
    console.print(report.LEGEND, style="dim", highlight=False)
    report.print_rows(record, console)
    for line in report.summary(record):
        console.print(line, highlight=False, markup=False)
    console.print(f"{len(record.rows)} rows in {record.seconds:.0f} s", highlight=False)
    if markdown:
        markdown.write_text(report.markdown(record))
    if plot:
        picture.draw(record, plot)
    if any("ours" not in row.results or row.results["ours"].failure for row in record.rows):
        raise typer.Exit(1)


def _bench_models(names: str, threads: int | None, markdown: Path | None) -> None:
    """Whole models beside what a user would have otherwise."""
    from bigmodel_bench import models as suite
    from bigmodel_bench import models_report as report
    from bigmodel_bench.report import report_console

    wanted = suite.selected(names)
    console = report_console()
    with _progress(console) as progress:
        task = progress.add_task("starting", total=sum(suite.PARTS[name].count for name in wanted))
        done = suite.run(
            wanted,
            threads,
            on_row=lambda row: progress.advance(task),
            on_progress=lambda text: progress.update(task, description=text),
        )
    report.print_run(done, console)
    if markdown:
        markdown.write_text(report.markdown(done))
    if any("ours" not in row.results or row.results["ours"].failure for row in done.rows):
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A record of `bigmodel bench --json`.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw the chart; none by default.", dir_okay=False)
    ] = None,
) -> None:
    """Puts two benchmark records side by side, of two devices or of before and after."""
    from bigmodel_bench import compare as comparison
    from bigmodel_bench.record import load_record
    from bigmodel_bench.report import report_console

    records = load_record(first), load_record(second)
    console = report_console()
    comparison.print_comparison(*records, console)
    if picture:
        comparison.draw(*records, picture)
        console.print(f"Chart: {picture}", highlight=False)


@app.command()
def audit(
    arch: Annotated[list[str] | None, typer.Option(help="Only this architecture, as sm_90; may be repeated.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only fp32, tf32, bf16 or fp16; may be repeated.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Only triton or cuda; may be repeated. By default each whose compiler is here."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also kernels whose code hardly differs from another's: takes hours.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Also write the rows to this file, as a list.", dir_okay=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables to this file, as Markdown.", dir_okay=False)
    ] = None,
) -> None:
    """Compiles the Triton and CUDA kernels for GPUs that need not be here, and reads predictions from the machine code.
    What was compiled before is taken from Triton's cache, or from ours."""
    from . import audit as auditing
    from .audit import report

    console = report.report_console()
    left_out = {} if backend else {each: why for each in auditing.BACKENDS if (why := auditing.reasons(each))}
    if len(left_out) < len(auditing.BACKENDS):  # else the named backends' errors say it
        for each, why in left_out.items():
            console.print(f"backend '{each}' is left out: {'; '.join(why)}", markup=False, highlight=False)
        backend = backend or [each for each in auditing.BACKENDS if each not in left_out]
    names = tuple(op or auditing.OPS), tuple(dtype or auditing.DTYPES), every, tuple(backend or auditing.BACKENDS)
    selected = {each: auditing.cases(each, *names) for each in arch or auditing.ARCHITECTURES}
    rows, total = [], sum(map(len, selected.values()))
    with _progress(console) as progress:
        task = progress.add_task("compiling", total=total)
        for each, cases in selected.items():
            progress.update(task, description=f"compiling for {each}")
            for row in auditing.audit(each, cases):
                rows.append(row)
                progress.advance(task)
                if not console.is_terminal:  # which shows no bar; a kernel may take minutes
                    kernel = f"{row.arch} {row.kernel} {row.dtype}"
                    typer.echo(f"{len(rows)}/{total} {kernel}: {row.spills} spills", err=True)
    report.print_rows(rows, console)
    if json:
        report.save(rows, json)
    if markdown:
        markdown.write_text(report.markdown(rows, " ".join(["bigmodel", *sys.argv[1:]])))


@app.command()
def tune(
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="bf16 (also for fp16), fp32 or tf32; may be repeated. bf16 by default.")
    ] = None,
    head_dim: Annotated[
        list[int] | None, typer.Option(help="Of attention; may be repeated. 64 and 128 by default.")
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(help="Tokens of linear and feed_forward; may be repeated. 8192 by default.")
    ] = None,
    width: Annotated[int, typer.Option(help="Features of linear and feed_forward.")] = 4096,
    hidden: Annotated[int, typer.Option(help="Features inside feed_forward.")] = 16384,
    device: Annotated[int, typer.Option(help="The CUDA device to measure on.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where results go; by default BIGMODEL_TUNE_DIR, or the user's cache.")
    ] = None,
) -> None:
    """Measures on this GPU which launches of the Triton kernels are fastest, and keeps them for later runs."""
    import torch

    from .tuning.device import limits_of, measured_device

    on = measured_device(device)  # before anything that needs Triton

    from . import tuned_launches
    from .tuning import problems, report, search

    limits = limits_of(on)
    half = "bf16" if limits.capability >= 80 else "fp16"
    wanted = problems.problems(
        op or problems.OPS, dtype or (half,), head_dim or (64, 128), rows or (8192,), width, hidden
    )
    identity = tuned_launches.identity_of(on)
    console = report.report_console()
    results, stopped = [], False
    with torch.cuda.device(on), _progress(console) as progress:
        overall = progress.add_task("problems", total=len(wanted))
        task = progress.add_task("", total=None)
        found = search.tune(
            wanted,
            on,
            identity,
            limits,
            folder,
            on_problem=lambda problem, total: progress.reset(task, total=total, description=str(problem)),
            on_candidate=lambda: progress.advance(task),
        )
        try:
            for result in found:
                results.append(result)
                progress.advance(overall)
        except KeyboardInterrupt:
            stopped = True
    report.print_results(results, identity, console)
    console.print(f"Kept in {tuned_launches.path_of(identity, folder)}", highlight=False)
    if folder and folder.resolve() != tuned_launches.default_folder().resolve():
        console.print(f"To use them: export {tuned_launches.ENVIRONMENT}={folder.resolve()}", highlight=False)
    if stopped:
        console.print(f"Stopped after {len(results)} of {len(wanted)} problems.", highlight=False)
        raise typer.Exit(INTERRUPTED)


def _default(name: str, text: str, **options) -> typer.models.OptionInfo:
    return typer.Option("--" + name.replace("_", "-"), help=text, **options)


@app.command()
def train(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="digits, or text: a byte-level CausalLM on pydoc's topics.")] = "digits",
    inputs: Annotated[str, _default("inputs", "An image as patches, or as pixels (tokens).")] = DEFAULTS.inputs,
    patch: Annotated[str, _default("patch", "Height x width: 1x8, 2x2, 2x4 or 4x4.")] = DEFAULTS.patch,
    vocabulary: Annotated[int, _default("vocabulary", "Tokens known to the embedding.")] = DEFAULTS.vocabulary,
    width: Annotated[int, _default("width", "Size of each position's vector.")] = DEFAULTS.width,
    heads: Annotated[int, _default("heads", "Attention heads.")] = DEFAULTS.heads,
    classes: Annotated[int, _default("classes", "Classes.")] = DEFAULTS.classes,
    layers: Annotated[int, _default("layers", "Layers.")] = DEFAULTS.layers,
    hidden: Annotated[int, _default("hidden", "Width inside the feed-forward layers.")] = DEFAULTS.hidden,
    activation: Annotated[str, _default("activation", "relu, gelu, gelu_tanh or silu.")] = DEFAULTS.activation,
    gate: Annotated[str, _default("gate", "none, input or hidden.")] = DEFAULTS.gate,
    head: Annotated[str, _default("head", "linear or concat.")] = DEFAULTS.head,
    dropout: Annotated[float, _default("dropout", "Its probability.")] = DEFAULTS.dropout,
    learning_rate: Annotated[float, _default("learning_rate", "Adam's.")] = DEFAULTS.learning_rate,
    warmup: Annotated[int, _default("warmup", "Steps until the full learning rate.")] = DEFAULTS.warmup,
    decay: Annotated[float, _default("decay", "The learning rate's factor per epoch.")] = DEFAULTS.decay,
    batch: Annotated[int, _default("batch", "Images per step.")] = DEFAULTS.batch,
    distortion: Annotated[
        float, _default("distortion", "How much training images are turned and shifted.")
    ] = DEFAULTS.distortion,
    epochs: Annotated[int, _default("epochs", "At most.")] = DEFAULTS.epochs,
    patience: Annotated[int, _default("patience", "Epochs without a lower loss before the end.")] = DEFAULTS.patience,
    dtype: Annotated[str, _default("dtype", "fp32, or bf16 by autocast.")] = DEFAULTS.dtype,
    samples: Annotated[int, _default("samples", "Images used; a fifth is held out.")] = DEFAULTS.samples,
    style: Annotated[str | None, typer.Option(help="Text: llama or gpt.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Text: heads of key and value.")] = None,
    length: Annotated[int | None, typer.Option(help="Text: bytes of a window.")] = None,
    steps: Annotated[int | None, typer.Option(help="Text: steps of the optimizer.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Text: AdamW's.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Text: batches whose gradients a step adds up.")] = None,
    clip: Annotated[float | None, typer.Option(help="Text: the gradient's largest norm; 0: any.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Text: recompute layers backward.")] = False,
    report: Annotated[int | None, typer.Option(help="Text: steps from report to report.")] = None,
    seed: Annotated[int, _default("seed", "Of parameters, batches and distortion.")] = DEFAULTS.seed,
    split_seed: Annotated[int, _default("split_seed", "Of the held-out part.")] = DEFAULTS.split_seed,
    compare: Annotated[bool, typer.Option("--compare", help="Train the same model of torch.nn beside it.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint.")] = False,
    checkpoint: Annotated[Path, typer.Option(help="Written after every epoch, and on Ctrl-C.", dir_okay=False)] = Path(
        "runs/train.safetensors"
    ),
    curve: Annotated[
        Path | None, typer.Option(help="PNG of the losses; with --compare runs/train_loss.png.", dir_okay=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for kernels and torch.")] = None,
) -> None:
    """Trains a SequenceClassifier on real handwritten digits: 1,797 images of 8x8 pixels, ten classes. With --task text
    a CausalLM on CPython's help topics; there the options that both tasks have are by default as TextOptions says."""
    import torch

    from .training.checkpoint import load_checkpoint
    from .training.trainer import Stopped, Trainer

    explicit = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    if task == "text":
        console = Console()
        if not train_text({name: context.params[name] for name in explicit}, _progress(console), console):
            raise typer.Exit(INTERRUPTED)
        return
    known = {each.name for each in fields(TrainingOptions)} | SHARED | {"compare", "curve"}
    if task != "digits" or explicit - known:
        wrong = [f"--task {task}"] if task != "digits" else [f"--{name.replace('_', '-')}" for name in explicit - known]
        raise ValueError(f"[train] {sorted(wrong)[0]}: expected --task text for it, or --task digits without it")
    if threads:
        torch.set_num_threads(threads)
    given = {field.name: context.params[field.name] for field in fields(TrainingOptions)}
    if resume:  # what the command line leaves open is as it was
        saved = load_checkpoint(checkpoint, "digits").facts["options"]
        given = {name: value if name in explicit else saved[name] for name, value in given.items()}
    options = TrainingOptions(**given)
    trainer = Trainer(options, checkpoint, resume)
    console = Console()
    _announce(trainer, console)
    with _progress(console) as progress:
        task = progress.add_task("", total=trainer.steps_per_epoch)

        def on_step() -> None:
            where = trainer.progress
            progress.update(
                task, completed=where.step, description=f"epoch {where.epoch + 1} of at most {options.epochs}"
            )

        def on_epoch(number, epoch) -> None:
            console.print(_epoch_line(number, epoch), highlight=False)
            progress.reset(task)

        try:
            trainer.run(on_step, on_epoch)
        except Stopped:
            where = trainer.progress
            console.print(
                f"Stopped after {where.epoch} epochs and {where.step} steps; saved in {checkpoint}. "
                "Continue with the same command and --resume.",
                highlight=False,
            )
            raise typer.Exit(INTERRUPTED) from None
    _conclude(trainer, console, curve or (Path("runs/train_loss.png") if options.compare else None))


def _announce(trainer, console: Console) -> None:
    data = trainer.data
    parameters = sum(parameter.numel() for parameter in trainer.contestants[0].model.parameters())
    console.print(
        f"{len(data.labels)} images to train on, {len(data.held_out_labels)} held out; "
        f"{parameters:,} parameters, {trainer.steps_per_epoch} steps per epoch",
        highlight=False,
    )
    if trainer.progress.epochs or trainer.progress.step:
        console.print(f"Resumed after epoch {trainer.progress.epoch}, step {trainer.progress.step}", highlight=False)


def _epoch_line(number: int, epoch) -> str:
    """`Epoch k: Loss = x`, then torch.nn's loss beside it if there is one, and the time of a step."""
    from .training.trainer import OURS, TORCH

    milliseconds = {name: f"{1e3 * seconds:.1f}" for name, seconds in epoch.step_s.items()}
    if TORCH not in epoch.loss:
        return f"Epoch {number}: Loss = {epoch.loss[OURS]:.6f}   {milliseconds[OURS]} ms per step"
    return (
        f"Epoch {number}: Loss = {epoch.loss[OURS]:.6f}   torch.nn: {epoch.loss[TORCH]:.6f}   "
        f"ms per step: {milliseconds[OURS]}, torch.nn {milliseconds[TORCH]} "
        f"({epoch.step_s[TORCH] / epoch.step_s[OURS]:.2f}x)"
    )


def _conclude(trainer, console: Console, curve: Path | None) -> None:
    from .training.plot import LABELS, draw_losses

    epochs, options = trainer.progress.epochs, trainer.options
    for name, accuracy in trainer.accuracies().items():
        count = len(trainer.data.held_out_labels)
        console.print(f"Accuracy of {LABELS[name]} on {count} held-out images: {accuracy:.4f}", highlight=False)
    console.print(f"Checkpoint: {trainer.checkpoint}", highlight=False)
    if curve:
        title = f"layers {options.layers}, width {options.width}, heads {options.heads}, {options.dtype}"
        draw_losses(epochs, f"Digits, seed {options.seed}: {title}", curve)
        console.print(f"Loss curve: {curve}", highlight=False)


def _progress(console: Console) -> Progress:
    """A bar that vanishes when the work is done; nothing at all where the output is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    main()
