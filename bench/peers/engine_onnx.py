"""ONNX Runtime as a contender, forward only: its fused operators, ONNX's own Attention, and modules exported from torch
and passed through its transformer optimiser."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from ..case import Inputs
from . import onnx_graphs, torch_functions
from .rows import Attention, Classifier, Decode, FeedForward, Linear, Module, Norm, PeerRow

_threads = 1
_ELEMENTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def setup(arguments: Sequence[str], threads: int) -> None:
    """Remembers the number of threads of every session."""
    global _threads
    _threads = threads


def versions() -> dict[str, str]:
    return {"onnxruntime": onnxruntime.__version__}


def contenders(row: PeerRow) -> dict[str, Callable[..., "OnnxCall"]]:
    """Operator -> what makes it from (sets of inputs, differentiable)."""
    work, element = row.work, _ELEMENTS[row.dtype]
    if row.backward or isinstance(work, Classifier):
        return {}
    if isinstance(work, Attention | Decode):
        return _attention(work, element)
    builders = {Norm: onnx_graphs.norm, Linear: onnx_graphs.linear, FeedForward: onnx_graphs.feed_forward}
    if type(work) in builders:
        return {"": partial(_with_parameters, builders[type(work)], work, element)}
    exported = {"exported": partial(_exported, row)}
    if work.kind == "MHA weights":
        return exported
    return {"fused": partial(_with_parameters, onnx_graphs.module, work, element), **exported}


def _attention(work: Attention | Decode, element: int) -> dict[str, Callable[..., "OnnxCall"]]:
    made = {"Attention": lambda sets, _: OnnxCall(onnx_graphs.attention(work, element), [_plain(s) for s in sets])}
    if isinstance(work, Decode):
        return made
    if work.kv_heads is None:
        model = partial(onnx_graphs.multi_head_attention, work, element)
        made["MultiHeadAttention"] = lambda sets, _: _heads_last(model(), work, sets)
    if work.causal:
        grouped = partial(onnx_graphs.group_query_attention, work, element)
        made["GroupQueryAttention"] = lambda sets, _: _heads_last(grouped(), work, sets)
    return made


def _plain(inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}


def _heads_last(model: bytes, work: Attention, sets: Sequence[Inputs]) -> "OnnxCall":
    """These operators take [batch, length, heads * head_dim]: their inputs lie so from the start."""

    def feeds(inputs: Inputs) -> dict[str, np.ndarray]:
        arrays = {
            name: inputs[name].transpose(1, 2).flatten(2).contiguous().numpy() for name in ("query", "key", "value")
        }
        if work.padding:
            arrays["mask"] = inputs["mask"][:, 0, 0].int().numpy()
        if work.additive:
            arrays["mask"] = inputs["mask"].numpy()
        return arrays

    heads_first = lambda output: output.unflatten(2, (work.heads, work.head_dim)).transpose(1, 2)  # noqa: E731
    return OnnxCall(model, [feeds(inputs) for inputs in sets], heads_first)


def _with_parameters(build: Callable, work, element: int, sets: Sequence[Inputs], _) -> "OnnxCall":
    names = ("x", "residual")
    feeds = [{name: inputs[name].numpy() for name in names if name in inputs} for inputs in sets]
    return OnnxCall(build(work, element, sets[0]), feeds)


def _exported(row: PeerRow, sets: Sequence[Inputs], _) -> "OnnxCall":
    """torch's exporter, then ONNX Runtime's optimiser for transformers, as its documentation has it."""
    from onnxruntime.transformers import optimizer

    work: Module = row.work
    module = torch_functions.modules(row)["nn"]()
    module.load_state_dict({name: sets[0][name] for name, _ in module.named_parameters()}, assign=True)
    module.eval()
    x = sets[0]["x"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "module.onnx"
        torch.onnx.export(module, (x,), path, dynamo=True, input_names=["x"], verbose=False)
        optimized = optimizer.optimize_model(
            str(path), model_type="bert", num_heads=work.heads, hidden_size=work.width, opt_level=1, use_gpu=False
        )
        return OnnxCall(optimized.model.SerializeToString(), [{"x": x.numpy()}])


class OnnxCall:
    """A session with its inputs bound once, one binding per set."""

    def __init__(
        self,
        model: bytes,
        feeds: Sequence[dict[str, np.ndarray]],
        convert: Callable[[Tensor], Tensor] = lambda output: output,
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._feeds, self._convert = feeds, convert  # the bindings only borrow the arrays
        self._bindings = []
        for arrays in feeds:
            binding = self._session.io_binding()
            for each in self._session.get_inputs():
                binding.bind_cpu_input(each.name, arrays[each.name])
            for each in self._session.get_outputs():
                binding.bind_output(each.name)
            self._bindings.append(binding)

    def call(self, turn: int) -> None:
        self._session.run_with_iobinding(self._bindings[turn % len(self._bindings)])

    def outputs(self) -> dict[str, Tensor]:
        self.call(0)
        values = [self._convert(torch.from_numpy(array)) for array in self._bindings[0].copy_outputs_to_cpu()]
        if len(values) == 1:
            return {"output": values[0]}
        return {f"output {index}": value for index, value in enumerate(values)}
