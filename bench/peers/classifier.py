"""The small classifier whose training step is a row: the same model around anybody's attention module."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows import Classifier


class Model(nn.Module):
    """tokens [batch, length] -> logits [batch, classes]. attention: a module with torch.nn.MultiheadAttention's
    constructor and forward."""

    def __init__(self, work: Classifier, attention: Callable[..., nn.Module], **factory):
        super().__init__()
        self.embedding = nn.Embedding(work.vocabulary, work.width, **factory)
        self.attention = attention(work.width, work.heads, batch_first=True, **factory)
        self.head = nn.Linear(work.width, work.classes, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.head(attended.mean(dim=1))


def parameter_shapes(work: Classifier) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in the order of the model's parameters."""
    model = Model(work, nn.MultiheadAttention, device="meta")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def with_parameters(work: Classifier, attention: Callable[..., nn.Module], inputs: dict[str, Tensor]) -> Model:
    """The model in training mode, with copies of the inputs' parameters."""
    parameters = {name: inputs[name].clone() for name in parameter_shapes(work)}
    model = Model(work, attention, device="meta")
    model.load_state_dict(parameters, assign=True)
    return model.train()


def first_step(model: Model, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The loss and every parameter's gradient, by name."""
    loss = F.cross_entropy(model(tokens), labels)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **gradients}


def training_step(model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
    """(tokens, labels) -> loss: one whole step."""

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(tokens), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
