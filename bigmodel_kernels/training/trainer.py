"""The training loop: Adam on cross-entropy, one model or two in step with each other, stoppable and resumable at any
step.

Nothing in a step depends on the steps before it but parameters, optimizer state and torch's generator, which all are in
the checkpoint: the order of an epoch's batches and a batch's distortion come from generators seeded by (seed, epoch)
and (seed, epoch, step). That is why a resumed run computes the same losses, bit for bit, as an uninterrupted one.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_kernels.models import SequenceClassifier

from .checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint, tensors_of
from .digits import distorted, load_digits, tokens_of
from .options import TrainingOptions
from .steps import Stopped, autocast, generator_of, interrupt_asked

# How each contestant computes: its name here is SequenceClassifier's word for it.
OURS, TORCH = "bigmodel", "torch"


@dataclass
class Epoch:
    """A finished epoch: by contestant, the mean loss of its samples and the median seconds of a step."""

    loss: dict[str, float]
    step_s: dict[str, float]


@dataclass
class Progress:
    """Where a run stands. `sums`: by contestant, the loss of the running epoch's samples so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)


class Contestant:
    """A model and its optimizer."""

    def __init__(self, compute: str, options: TrainingOptions):
        torch.manual_seed(options.seed)
        self.compute = compute
        self.model = SequenceClassifier(
            vocabulary=options.vocabulary,
            width=options.width,
            heads=options.heads,
            classes=options.classes,
            layers=options.layers,
            hidden=options.hidden,
            activation=options.activation,
            gate=None if options.gate == "none" else options.gate,
            head=options.head,
            dropout=options.dropout,
            image=None if options.inputs == "pixels" else (1, 8, 8),
            patch=tuple(int(side) for side in options.patch.split("x")),
            compute=compute,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate, fused=True)

    def step(self, inputs: Tensor, labels: Tensor, learning_rate: float, dtype: str) -> float:
        """One step of training; returns the batch's mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        with autocast(dtype):
            loss = F.cross_entropy(self.model(inputs).float(), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, inputs: Tensor, labels: Tensor, dtype: str) -> float:
        """The share of inputs whose class is found."""
        self.model.eval()
        with autocast(dtype):
            right = sum(
                (self.model(part).argmax(-1) == label).sum().item()
                for part, label in zip(inputs.split(256), labels.split(256), strict=True)
            )
        self.model.train()
        return right / len(labels)


class Trainer:
    """One training run.

    checkpoint: where to save after every epoch and when stopped; None: nowhere.
    resume: continue from `checkpoint` instead of starting anew. Only `epochs` may differ from the options it was
        saved with: ValueError names what else does.
    """

    def __init__(self, options: TrainingOptions, checkpoint: Path | None = None, resume: bool = False):
        self.options = options
        self.checkpoint = checkpoint
        self.progress = Progress()
        self.contestants = [Contestant(compute, options) for compute in ([OURS, TORCH] if options.compare else [OURS])]
        self.data = load_digits(options.samples, options.split_seed)
        self._step_s: dict[str, list[float]] = {}
        if resume:
            self._load()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data.labels) // self.options.batch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the loss has stopped falling."""
        losses = [epoch.loss[OURS] for epoch in self.progress.epochs]
        patience = self.options.patience
        if len(losses) > patience and min(losses[-patience:]) > 0.99 * min(losses[:-patience]):
            return True
        return self.progress.epoch >= self.options.epochs

    def run(
        self, on_step: Callable[[], None] = lambda: None, on_epoch: Callable[[int, Epoch], None] = lambda k, epoch: None
    ) -> None:
        """Trains until `finished`. `on_epoch(k, epoch)` counts from 1. Raises Stopped after Ctrl-C, with all saved."""
        with interrupt_asked() as interrupted:
            while not self.finished:
                for batch in self._batches():
                    self._step(*batch)
                    on_step()
                    if interrupted.is_set() and self.progress.step < self.steps_per_epoch:
                        self.save()
                        raise Stopped
                on_epoch(self.progress.epoch + 1, self._end_epoch())
                self.save()
                if interrupted.is_set():
                    raise Stopped

    def accuracies(self) -> dict[str, float]:
        """By contestant, the accuracy on the held-out part."""
        inputs = self._inputs(self.data.held_out_images)
        return {
            contestant.compute: contestant.accuracy(inputs, self.data.held_out_labels, self.options.dtype)
            for contestant in self.contestants
        }

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        tensors = {"generator": torch.get_rng_state()}
        for contestant in self.contestants:
            tensors |= tensors_of(contestant.compute, contestant.model, contestant.optimizer)
        facts = {"task": "digits", "options": asdict(self.options), "progress": asdict(self.progress)}
        save_checkpoint(self.checkpoint, Checkpoint(tensors, facts))

    def _load(self) -> None:
        saved = load_checkpoint(self.checkpoint, "digits")
        trained_with = TrainingOptions(**saved.facts["options"])
        if different := self.options.differences(trained_with):
            sentences = [
                f"{name} {getattr(trained_with, name)}, not {getattr(self.options, name)}" for name in different
            ]
            raise ValueError(f"[train] {self.checkpoint} was trained with {'; '.join(sentences)}")
        facts = saved.facts["progress"]
        self.progress = Progress(**{**facts, "epochs": [Epoch(**epoch) for epoch in facts["epochs"]]})
        for contestant in self.contestants:
            restore(contestant.compute, contestant.model, contestant.optimizer, saved.tensors)
        torch.set_rng_state(saved.tensors["generator"])

    def _inputs(self, images: Tensor) -> Tensor:
        return tokens_of(images) if self.options.inputs == "pixels" else images

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The running epoch's batches from the running step on: inputs and labels."""
        options, progress = self.options, self.progress
        order = torch.randperm(len(self.data.labels), generator=generator_of(options.seed, progress.epoch))
        for indices in order.split(options.batch)[progress.step :]:
            images = self.data.images[indices]
            if options.distortion:
                images = distorted(
                    images, options.distortion, generator_of(options.seed, progress.epoch, progress.step)
                )
            yield self._inputs(images), self.data.labels[indices]

    def _step(self, inputs: Tensor, labels: Tensor) -> None:
        """The same step for each contestant, taking turns in who goes first."""
        steps_done = self.progress.epoch * self.steps_per_epoch + self.progress.step
        options = self.options
        learning_rate = options.learning_rate * options.decay**self.progress.epoch
        if options.warmup:
            learning_rate *= min(1.0, (steps_done + 1) / options.warmup)
        turns = self.contestants if steps_done % 2 == 0 else self.contestants[::-1]
        for contestant in turns:
            start = time.perf_counter()
            loss = contestant.step(inputs, labels, learning_rate, options.dtype)
            self._step_s.setdefault(contestant.compute, []).append(time.perf_counter() - start)
            sums = self.progress.sums
            sums[contestant.compute] = sums.get(contestant.compute, 0.0) + loss * len(labels)
        self.progress.step += 1

    def _end_epoch(self) -> Epoch:
        progress, count = self.progress, len(self.data.labels)
        epoch = Epoch(
            loss={name: total / count for name, total in progress.sums.items()},
            step_s={name: statistics.median(seconds) for name, seconds in self._step_s.items()},
        )
        self._step_s.clear()
        self.progress = Progress(epoch=progress.epoch + 1, epochs=[*progress.epochs, epoch])
        return epoch
