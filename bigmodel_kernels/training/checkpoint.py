"""Checkpoints: one safetensors file with every tensor, and the rest as JSON in its header."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = "bigmodel_kernels training 1"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by dotted name, and facts that JSON can hold (its numbers come back bit for bit)."""

    tensors: dict[str, Tensor]
    facts: dict


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file whole or not at all: a crash or a full disk leaves the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    metadata = {"format": FORMAT, "facts": json.dumps(checkpoint.facts)}
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    safetensors.torch.save_file(tensors, unfinished, metadata)
    with open(unfinished, "rb") as written:
        os.fsync(written.fileno())
    os.replace(unfinished, path)


def load_checkpoint(path: Path, task: str | None = None) -> Checkpoint:
    """Reads what `save_checkpoint` wrote. Raises ValueError if the file is missing, damaged or another's, or of another
    task than the one given."""
    if not path.exists():
        raise ValueError(f"[train] there is no checkpoint {path}: expected one that `bigmodel train` has written")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"[train] {path} is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"[train] {path} is a safetensors file, but not a checkpoint of this version's training")
    facts = json.loads(metadata["facts"])
    if task is not None and facts.get("task", "digits") != task:
        raise ValueError(f"[train] {path} is of task {facts.get('task', 'digits')}, not {task}")
    return Checkpoint(tensors, facts)


def tensors_of(prefix: str, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The model's parameters and buffers and the optimizer's state, named after the parameters."""
    tensors = {f"{prefix}.model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{prefix}.optimizer.{name}.{key}"] = value
    return tensors


def restore(prefix: str, model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `tensors_of` took, into a model and an optimizer built with the same options."""
    start = f"{prefix}.model."
    model.load_state_dict({name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)})
    for name, parameter in model.named_parameters():
        start = f"{prefix}.optimizer.{name}."
        optimizer.state[parameter] = {
            key[len(start) :]: tensor.clone() for key, tensor in tensors.items() if key.startswith(start)
        }
