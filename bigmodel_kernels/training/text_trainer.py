"""The training loop of a byte-level CausalLM: AdamW on next-byte cross-entropy, stoppable and resumable at any step.

A step's batch is decided by (seed, step) alone, and parameters, optimizer state and torch's generator are in the
checkpoint: a resumed run computes the same losses, bit for bit, as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from bigmodel_kernels.models import CausalLM, CausalLMConfig

from .checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint, tensors_of
from .options import check_seed
from .steps import Stopped, autocast, interrupt_asked
from .text import VOCABULARY, load_text, windows

STYLES = ("llama", "gpt")
DTYPES = ("fp32", "bf16")
TASK, NAME = "text", "bigmodel"
# Of the cosine: the last step's share of the learning rate.
LEAST_SHARE = 0.1
HELD_OUT_WINDOWS = 64


@dataclass(frozen=True)
class TextOptions:
    """What is trained and how. Two runs of equal options compute equal losses.

    style: "llama" or "gpt", see CausalLMConfig. width, layers, heads, kv_heads, hidden, dropout: the model's; kv_heads
        None: heads; hidden None: 4 * width.
    length: bytes of a window, and the longest that the model ever sees.
    learning_rate: AdamW's, reached after `warmup` steps, then falling by half a cosine to a tenth in the last step.
    weight_decay: AdamW's, of matrices only.
    steps: of the optimizer. batch: windows of a step's each part; accumulate: parts whose gradients a step adds up.
    clip: the largest norm of a step's gradient; 0: any.
    dtype: "fp32", or "bf16" by torch.autocast. checkpointing: keep only the layers' inputs for the backward pass.
    report: steps from one report of the losses, and one checkpoint, to the next.
    seed: of the parameters and the batches.
    """

    style: str = "llama"
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int | None = None
    hidden: int | None = None
    dropout: float = 0.0
    length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1
    steps: int = 500
    batch: int = 16
    accumulate: int = 1
    clip: float = 1.0
    dtype: str = "fp32"
    checkpointing: bool = False
    report: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("style", STYLES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"[train] {name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("steps", "batch", "accumulate", "report"):
            if getattr(self, name) < 1:
                raise ValueError(f"[train] {name} is {getattr(self, name)}: expected at least 1")
        if not 2 <= self.length <= 8192:
            raise ValueError(f"[train] length is {self.length}: expected 2 to 8192")
        check_seed("train", "seed", self.seed)
        rate, decay = self.learning_rate, self.weight_decay
        if not (0 < rate < math.inf and self.warmup >= 0 and self.clip >= 0 and 0 <= decay < math.inf):
            raise ValueError(
                "[train] expected a finite learning_rate > 0, warmup >= 0, clip >= 0 and a finite weight_decay >= 0, "
                f"got {rate}, {self.warmup}, {self.clip} and {decay}"
            )

    @property
    def config(self) -> CausalLMConfig:
        """The model's."""
        make = CausalLMConfig.llama if self.style == "llama" else CausalLMConfig.gpt
        names = ("width", "layers", "heads", "kv_heads", "hidden", "length", "dropout")
        return make(vocabulary=VOCABULARY, **{name: getattr(self, name) for name in names})

    def differences(self, other: "TextOptions") -> list[str]:
        """Names of the options that make `other` another run."""
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(other, each.name)]

    def learning_rate_at(self, step: int) -> float:
        """Of step 0, 1, ...: linear warm-up, then half a cosine."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.learning_rate * (LEAST_SHARE + (1 - LEAST_SHARE) * (1 + math.cos(math.pi * done)) / 2)


@dataclass
class Report:
    """After `step` steps: the mean loss since the last report and that of the held-out text, in nats per byte, and the
    bytes trained on per second."""

    step: int
    loss: float
    held_out: float
    bytes_per_s: float


@dataclass
class Progress:
    """Where a run stands; sum: the losses since the last report."""

    step: int = 0
    sum: float = 0.0
    reports: list[Report] = field(default_factory=list)


class TextTrainer:
    """One training run.

    checkpoint: where to save at every report and when stopped; None: nowhere.
    resume: continue from `checkpoint`: ValueError names what differs from the options it was saved with.
    """

    def __init__(self, options: TextOptions, checkpoint: Path | None = None, resume: bool = False):
        self.options = options
        self.checkpoint = checkpoint
        self.progress = Progress()
        torch.manual_seed(options.seed)
        self.model = CausalLM(options.config)
        self.model.checkpointing = options.checkpointing
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)
        self.text = load_text()
        self._seconds = 0.0
        self._steps_timed = 0
        if resume:
            self._load()

    def run(
        self, on_step: Callable[[], None] = lambda: None, on_report: Callable[[Report], None] = lambda report: None
    ) -> None:
        """Trains until all steps are done. Raises Stopped after Ctrl-C, with all saved."""
        with interrupt_asked() as interrupted:
            while self.progress.step < self.options.steps:
                start = time.perf_counter()
                self.progress.sum += self._step()
                self._seconds += time.perf_counter() - start
                self._steps_timed += 1
                self.progress.step += 1
                on_step()
                if self.progress.step % self.options.report == 0 or self.progress.step == self.options.steps:
                    on_report(self._report())
                    self.save()
                if interrupted.is_set():
                    self.save()
                    raise Stopped

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Of always the same windows of the held-out text."""
        tokens, targets = windows(self.text.held_out, HELD_OUT_WINDOWS, self.options.length, 0)
        self.model.eval()
        with autocast(self.options.dtype):
            losses = [
                self.model.loss(part, target).item()
                for part, target in zip(tokens.split(16), targets.split(16), strict=True)
            ]
        self.model.train()
        return sum(losses) / len(losses)

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        tensors = {"generator": torch.get_rng_state(), **tensors_of(NAME, self.model, self.optimizer)}
        facts = {"task": TASK, "options": asdict(self.options), "progress": asdict(self.progress)}
        save_checkpoint(self.checkpoint, Checkpoint(tensors, facts))

    def _step(self) -> float:
        options, step = self.options, self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate_at(step)
        self.optimizer.zero_grad()
        total = 0.0
        for part in range(options.accumulate):
            batch = windows(self.text.trained, options.batch, options.length, options.seed, step, part)
            with autocast(options.dtype):
                loss = self.model.loss(*batch) / options.accumulate
            loss.backward()
            total += loss.item()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.optimizer.step()
        return total

    def _report(self) -> Report:
        progress, options = self.progress, self.options
        since = progress.step - (progress.reports[-1].step if progress.reports else 0)
        trained_on = self._steps_timed * options.accumulate * options.batch * options.length
        report = Report(progress.step, progress.sum / since, self.held_out_loss(), trained_on / self._seconds)
        progress.reports.append(report)
        progress.sum, self._seconds, self._steps_timed = 0.0, 0.0, 0
        return report

    def _load(self) -> None:
        saved = load_checkpoint(self.checkpoint, TASK)
        trained_with = TextOptions(**saved.facts["options"])
        if different := self.options.differences(trained_with):
            sentences = [
                f"{name} {getattr(trained_with, name)}, not {getattr(self.options, name)}" for name in different
            ]
            raise ValueError(f"[train] {self.checkpoint} was trained with {'; '.join(sentences)}")
        facts = saved.facts["progress"]
        self.progress = Progress(**{**facts, "reports": [Report(**report) for report in facts["reports"]]})
        restore(NAME, self.model, self.optimizer, saved.tensors)
        torch.set_rng_state(saved.tensors["generator"])


def load_model(path: Path) -> CausalLM:
    """The model of a checkpoint, for generation."""
    saved = load_checkpoint(path, TASK)
    model = CausalLM(TextOptions(**saved.facts["options"]).config)
    start = f"{NAME}.model."
    model.load_state_dict({name[len(start) :]: x for name, x in saved.tensors.items() if name.startswith(start)})
    return model.eval()
