"""A contender that is called with torch tensors: ours, torch itself, and what plugs into torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..calls import run_once
from ..case import Function, Inputs
from . import classifier
from .rows import Classifier


class TorchCall:
    """One call per turn, each on the turn's own set of inputs."""

    def __init__(self, functions: Sequence[Function], sets: Sequence[Inputs], differentiable: tuple[str, ...]):
        self._functions, self._sets, self._differentiable = functions, sets, differentiable

    def call(self, turn: int) -> dict[str, Tensor]:
        index = turn % len(self._sets)
        return run_once(self._functions[index], self._sets[index], self._differentiable)

    def outputs(self) -> dict[str, Tensor]:
        """What the first set gives, outputs and gradients by name."""
        return self.call(0)


class TrainingStep:
    """The classifier's step; every call goes on from the one before."""

    def __init__(
        self,
        work: Classifier,
        attention: Callable[..., nn.Module],
        inputs: Inputs,
        wrap: Callable = lambda model: model,
    ):
        self._model = classifier.with_parameters(work, attention, inputs)
        self._inputs = inputs["tokens"], inputs["labels"]
        optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-4)
        self._step = classifier.training_step(wrap(self._model), optimizer)

    def call(self, turn: int) -> Tensor:
        return self._step(*self._inputs)

    def outputs(self) -> dict[str, Tensor]:
        """Loss and gradients of the first step, which is not taken."""
        values = classifier.first_step(self._model, *self._inputs).values()
        return {f"output {index}": value for index, value in enumerate(values)}


def function_call(
    function: Callable, names: Sequence[str], sets: Sequence[Inputs], differentiable: tuple[str, ...]
) -> TorchCall:
    """A contender that calls `function` with these inputs of the set."""
    call = lambda inputs: function(*(inputs.get(name) for name in names))  # noqa: E731
    return TorchCall([call] * len(sets), sets, differentiable)


def module_call(
    module: nn.Module,
    sets: Sequence[Inputs],
    differentiable: tuple[str, ...],
    wrap: Callable = lambda module: module,
) -> TorchCall:
    """A contender that calls a module (on the meta device) with x; its parameters are copies of the first set's."""
    inputs = sets[0]
    names = [name for name, _ in module.named_parameters()]
    module.load_state_dict({name: inputs[name].clone() for name in names}, assign=True)
    module.train(bool(differentiable))
    wrapped = wrap(module)
    bound = {**inputs, **dict(module.named_parameters())}
    return TorchCall([lambda inputs: wrapped(inputs["x"])], [bound], differentiable)
