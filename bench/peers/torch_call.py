"""A contender that is called with torch tensors: ours, torch itself, and what plugs into torch."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..calls import named, run_once
from ..case import Inputs
from . import classifier
from .rows import Classifier


class TorchCall:
    """One call per turn, the turn's own of several that need no arguments any more."""

    def __init__(self, calls: Sequence[Callable[[], object]]):
        self._calls = calls

    def call(self, turn: int) -> object:
        return self._calls[turn % len(self._calls)]()

    def outputs(self) -> dict[str, Tensor]:
        """What the first call gives, outputs and gradients by name."""
        result = self.call(0)
        return result if isinstance(result, dict) else named(result)


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
        with torch.enable_grad():
            return self._step(*self._inputs)

    def outputs(self) -> dict[str, Tensor]:
        """Loss and gradients of the first step, which is not taken."""
        with torch.enable_grad():
            values = classifier.first_step(self._model, *self._inputs).values()
        return {f"output {index}": value for index, value in enumerate(values)}


def function_call(
    function: Callable, names: Sequence[str], sets: Sequence[Inputs], differentiable: tuple[str, ...]
) -> TorchCall:
    """A contender that calls `function` with these inputs of each set. A forward pass has nothing around the function:
    what takes ten microseconds would feel it."""
    if not differentiable:
        return TorchCall([partial(function, *(inputs.get(name) for name in names)) for inputs in sets])
    of_inputs = lambda inputs: function(*(inputs.get(name) for name in names))  # noqa: E731
    return TorchCall([partial(run_once, of_inputs, inputs, differentiable) for inputs in sets])


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
    bound = {**inputs, **dict(module.named_parameters())}
    return function_call(wrap(module), ("x",), [bound], differentiable)
