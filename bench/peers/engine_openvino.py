"""OpenVINO as a contender, forward only: the module of torch, converted.

Its precision hint is f32 in fp32 rows, bf16 in bf16 rows and f16 in fp16 rows; inputs and outputs stay fp32, as its
users have them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import openvino
import torch
from torch import Tensor, nn

from ..case import Inputs
from . import torch_functions
from .rows import Classifier, PeerRow

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_threads = 1


def setup(arguments: Sequence[str], threads: int) -> None:
    """Remembers the number of threads of every compiled model."""
    global _threads
    _threads = threads


def versions() -> dict[str, str]:
    return {"openvino": openvino.__version__.split("-")[0]}


def contenders(row: PeerRow) -> dict[str, Callable[..., "OpenVinoCall"]]:
    """One contender in forward rows."""
    if row.backward or isinstance(row.work, Classifier):
        return {}
    return {"": partial(_make, row)}


class _Function(nn.Module):
    """A function of tensors as the module that OpenVINO converts."""

    def __init__(self, function: Callable):
        super().__init__()
        self._function = function

    def forward(self, *tensors: Tensor):
        return self._function(*tensors)


class _AttentionWithoutMask(nn.Module):
    def __init__(self, attend: Callable):
        super().__init__()
        self._attend = attend

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._attend(query, key, value, None)


def _make(row: PeerRow, sets: Sequence[Inputs], _) -> "OpenVinoCall":
    inputs = [{name: _float(tensor) for name, tensor in each.items()} for each in sets]
    if row.has_parameters:
        module = next(iter(torch_functions.modules(row).values()))()
        module.load_state_dict({name: inputs[0][name] for name, _ in module.named_parameters()}, assign=True)
        return OpenVinoCall(row, module.eval(), [[each["x"]] for each in inputs])
    function, names = next(iter(torch_functions.functions(row).values()))
    if "mask" in names and inputs[0]["mask"] is None:
        function, names = _AttentionWithoutMask(function), names[:3]
    module = function if isinstance(function, nn.Module) else _Function(function)
    return OpenVinoCall(row, module, [[each[name] for name in names] for each in inputs])


def _float(tensor: Tensor | None) -> Tensor | None:
    return tensor.float() if tensor is not None and tensor.is_floating_point() else tensor


class OpenVinoCall:
    """A compiled model and one inference request per set of inputs, which it shares instead of copying."""

    def __init__(self, row: PeerRow, module: nn.Module, sets: Sequence[Sequence[Tensor]]):
        with torch.no_grad():
            model = openvino.convert_model(module, example_input=tuple(sets[0]))
        model.reshape(
            {port: openvino.PartialShape(list(t.shape)) for port, t in zip(model.inputs, sets[0], strict=True)}
        )
        settings = {
            "INFERENCE_NUM_THREADS": _threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[row.dtype],
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._requests = []
        self._sets = sets
        for tensors in sets:
            request = compiled.create_infer_request()
            for index, tensor in enumerate(tensors):
                request.set_input_tensor(index, openvino.Tensor(tensor.contiguous().numpy(), shared_memory=True))
            self._requests.append(request)

    def call(self, turn: int) -> None:
        self._requests[turn % len(self._requests)].infer()

    def outputs(self) -> dict[str, Tensor]:
        self.call(0)
        request = self._requests[0]
        count = len(request.model_outputs)
        values = [torch.from_numpy(request.get_output_tensor(index).data.copy()) for index in range(count)]
        return {"output": values[0]} if count == 1 else {f"output {index}": v for index, v in enumerate(values)}
