"""`bigmodel train --task text` and `bigmodel generate`, as the command line talks about them."""

import codecs
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

DEFAULT_CHECKPOINT = Path("runs/text.safetensors")
# Options that are not of one task alone.
SHARED = {"task", "resume", "checkpoint", "threads"}


def train_text(given: Mapping, progress: Progress, console: Console) -> bool:
    """Trains with the options that were given on the command line, the others as they are by default or, resuming, as
    they were. Returns False where Ctrl-C ended it."""
    import torch

    from .checkpoint import load_checkpoint
    from .text_trainer import TASK, Stopped, TextOptions, TextTrainer

    names = {each.name for each in fields(TextOptions)}
    if foreign := sorted(set(given) - names - SHARED):
        raise ValueError(f"[train] --{foreign[0].replace('_', '-')} is no option of --task text")
    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    checkpoint, resume = given.get("checkpoint", DEFAULT_CHECKPOINT), given.get("resume", False)
    chosen = load_checkpoint(checkpoint, TASK).facts["options"] if resume else {}
    options = TextOptions(**{**chosen, **{name: value for name, value in given.items() if name in names}})
    trainer = TextTrainer(options, checkpoint, resume)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    console.print(
        f"{len(trainer.text.trained):,} bytes of pydoc's topics to train on, {len(trainer.text.held_out):,} held out;\n"
        f"{parameters:,} parameters, {options.accumulate * options.batch * options.length:,} bytes per step; losses in "
        "nats per byte",
        highlight=False,
    )
    if trainer.progress.step:
        console.print(f"Resumed after step {trainer.progress.step}", highlight=False)
    with progress:
        task = progress.add_task("training", total=options.steps, completed=trainer.progress.step)
        try:
            trainer.run(
                on_step=lambda: progress.update(task, completed=trainer.progress.step),
                on_report=lambda report: console.print(
                    f"Step {report.step}: Loss = {report.loss:.6f}   held out: {report.held_out:.6f}   "
                    f"{report.bytes_per_s:,.0f} bytes per second",
                    highlight=False,
                ),
            )
        except Stopped:
            console.print(
                f"Stopped after step {trainer.progress.step}; saved in {checkpoint}. "
                "Continue with the same command and --resume.",
                highlight=False,
            )
            return False
    console.print(f"Checkpoint: {checkpoint}", highlight=False)
    return True


def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "The ",
    checkpoint: Annotated[
        Path, typer.Option(help="Of `bigmodel train --task text`.", dir_okay=False)
    ] = DEFAULT_CHECKPOINT,
    tokens: Annotated[int | None, typer.Option(min=1, help="New bytes; by default as many as the model sees.")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest byte.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest bytes only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from those that reach this probability.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: avoid bytes that were there.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Above 1: beam search; with --temperature 0.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text, if the model writes it; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for kernels and torch.")] = None,
) -> None:
    """Continues a text with a model that `bigmodel train --task text` has trained."""
    import torch

    from .options import check_seed
    from .text_trainer import load_model

    check_seed("generate", "seed", seed)
    if threads:
        torch.set_num_threads(threads)
    model = load_model(checkpoint)
    start = list(prompt.encode())
    count = tokens or max(1, model.config.length - len(start))
    written = codecs.getincrementaldecoder("utf-8")("replace")
    unwritten = [prompt]  # until there is a token: then the options are known to fit

    def show(row: int, token: int) -> None:
        sys.stdout.write("".join([*unwritten, written.decode(bytes([token]))]))
        sys.stdout.flush()
        unwritten.clear()

    before = time.perf_counter()
    (found,) = model.generate(
        [start],
        count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        beams=beams,
        stop=[text.encode() for text in stop or ()],
        on_token=show if beams == 1 else None,
        generator=torch.Generator().manual_seed(seed),
    )
    seconds = time.perf_counter() - before
    if beams > 1:
        unwritten.append(written.decode(bytes(found)))
    # What is left is a character that was begun.
    sys.stdout.write("".join([*unwritten, written.decode(b"", final=True), "\n"]))
    sys.stdout.flush()
    console = Console(stderr=True)
    console.print(f"{len(found)} tokens in {seconds:.2f} s: {len(found) / seconds:.0f} per second", highlight=False)
