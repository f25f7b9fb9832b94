"""The rows as ONNX graphs, written with ONNX Runtime's own fused operators where it has them."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..case import Inputs
from .rows import Attention, Decode, FeedForward, Linear, Module, Norm

EPS = 1e-5
MICROSOFT = "com.microsoft"
# An IR version that ONNX Runtime releases of the last two years read.
_IR_VERSION = 10
_OPSET = 23


class Graph:
    """A graph under construction; tensors are known by name. Parameters become initialisers of the element type."""

    def __init__(self, element: int):
        self.element = element
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[int], element: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element or self.element, shape))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], domain: str = "", **attributes) -> str:
        """Adds a node and returns its first output's name."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def output(self, name: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, self.element, None))

    def model(self) -> bytes:
        graph = helper.make_graph(self.nodes, "row", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()


def multi_head_attention(work: Attention, element: int) -> bytes:
    """query, key and value [batch, length, heads * head_dim]."""
    graph = Graph(element)
    size = (work.batch, work.length, work.heads * work.head_dim)
    inputs = [graph.input(name, size) for name in ("query", "key", "value")]
    if work.padding:
        inputs += ["", graph.input("mask", (work.batch, work.length), TensorProto.INT32)]
    if work.additive:
        inputs += ["", "", graph.input("mask", (work.batch, 1, work.length, work.length))]
    attributes = {"num_heads": work.heads} | ({"unidirectional": 1} if work.causal else {})
    graph.output(graph.op("MultiHeadAttention", inputs, "output", MICROSOFT, **attributes))
    return graph.model()


def group_query_attention(work: Attention, element: int) -> bytes:
    """query, key and value [batch, length, heads * head_dim]; always causal."""
    graph = Graph(element)
    kv_heads = work.kv_heads or work.heads
    query = graph.input("query", (work.batch, work.length, work.heads * work.head_dim))
    keys = [graph.input(name, (work.batch, work.length, kv_heads * work.head_dim)) for name in ("key", "value")]
    last = graph.constant("last", np.full(work.batch, work.length - 1, np.int32))
    total = graph.constant("total", np.array(work.length, np.int32))
    outputs = ("output", "present_key", "present_value")
    graph.op(
        "GroupQueryAttention",
        [query, *keys, "", "", last, total],
        outputs,
        MICROSOFT,
        num_heads=work.heads,
        kv_num_heads=kv_heads,
    )
    graph.output("output")
    return graph.model()


def attention(work: Attention | Decode, element: int) -> bytes:
    """ONNX's own Attention: query, key and value [batch, heads, length, head_dim]."""
    graph = Graph(element)
    queries = 1 if isinstance(work, Decode) else work.length
    kv_heads = work.kv_heads or work.heads
    inputs = [graph.input("query", (work.batch, work.heads, queries, work.head_dim))]
    inputs += [graph.input(name, (work.batch, kv_heads, work.length, work.head_dim)) for name in ("key", "value")]
    causal = 0
    if isinstance(work, Attention):
        causal = int(work.causal)
        if work.padding:
            inputs.append(graph.input("mask", (work.batch, 1, 1, work.length), TensorProto.BOOL))
        if work.additive:
            inputs.append(graph.input("mask", (work.batch, 1, work.length, work.length)))
    graph.output(graph.op("Attention", inputs, "output", is_causal=causal))
    return graph.model()


def norm(work: Norm, element: int, parameters: Inputs) -> bytes:
    """x (and residual) [rows, width]."""
    graph = Graph(element)
    x = graph.input("x", (work.rows, work.width))
    weight = graph.constant("weight", parameters["weight"].numpy())
    if work.kind == "RMSNorm":
        graph.output(graph.op("RMSNormalization", (x, weight), "output", axis=-1, epsilon=EPS))
        return graph.model()
    bias = graph.constant("bias", parameters["bias"].numpy())
    if work.kind == "LayerNorm":
        graph.output(graph.op("LayerNormalization", (x, weight, bias), "output", axis=-1, epsilon=EPS))
        return graph.model()
    residual = graph.input("residual", (work.rows, work.width))
    names = ("output 1", "", "", "output 0")
    graph.op("SkipLayerNormalization", (x, residual, weight, bias), names, MICROSOFT, epsilon=EPS)
    graph.output("output 0")
    graph.output("output 1")
    return graph.model()


def linear(work: Linear, element: int, parameters: Inputs) -> bytes:
    """x [rows, width]."""
    graph = Graph(element)
    x = graph.input("x", (work.rows, work.width))
    graph.output(_linear(graph, x, parameters, "weight", "bias", "output"))
    return graph.model()


def feed_forward(work: FeedForward, element: int, parameters: Inputs) -> bytes:
    """x [rows, width]."""
    graph = Graph(element)
    x = graph.input("x", (work.rows, work.width))
    hidden = _linear(graph, x, parameters, "w1", "b1", "hidden")
    if work.gate == "hidden":
        gate = _linear(graph, x, parameters, "w_gate", None, "gate")
        hidden = graph.op("Mul", (graph.op("Mul", (gate, graph.op("Sigmoid", [gate], "s")), "silu"), hidden), "gated")
    else:
        hidden = graph.op("Gelu", [hidden], "activated")
    graph.output(_linear(graph, hidden, parameters, "w2", "b2", "output"))
    return graph.model()


def module(work: Module, element: int, parameters: Inputs) -> bytes:
    """An attention module or an encoder layer by fused operators: x [batch, length, width]."""
    graph = Graph(element)
    x = graph.input("x", (work.batch, work.length, work.width))
    if work.kind == "MHA":
        graph.output(_self_attention(graph, x, work, parameters, "", "output"))
        return graph.model()
    attended = _self_attention(graph, x, work, parameters, "self_attn.", "attended")
    first = _skip_norm(graph, x, attended, parameters, "norm1", "first")
    hidden = _product(graph, first, parameters, "linear1.weight", None, "hidden")
    bias = graph.constant("linear1.bias", parameters["linear1.bias"].numpy())
    activated = graph.op("BiasGelu", (hidden, bias), "activated", MICROSOFT)
    second = _product(graph, activated, parameters, "linear2.weight", "linear2.bias", "second")
    graph.output(_skip_norm(graph, first, second, parameters, "norm2", "output"))
    return graph.model()


def _self_attention(graph: Graph, x: str, work: Module, parameters: Inputs, prefix: str, output: str) -> str:
    """The Attention operator with packed weights, then the output projection."""
    packed = graph.constant("qkv", parameters[f"{prefix}in_proj_weight"].numpy().T)
    bias = graph.constant("qkv bias", parameters[f"{prefix}in_proj_bias"].numpy())
    heads = graph.op("Attention", (x, packed, bias), "heads", MICROSOFT, num_heads=work.heads)
    return _product(graph, heads, parameters, f"{prefix}out_proj.weight", f"{prefix}out_proj.bias", output)


def _skip_norm(graph: Graph, x: str, skip: str, parameters: Inputs, name: str, output: str) -> str:
    weight, bias = (
        graph.constant(f"{name}.{kind}", parameters[f"{name}.{kind}"].numpy()) for kind in ("weight", "bias")
    )
    return graph.op("SkipLayerNormalization", (x, skip, weight, bias), output, MICROSOFT, epsilon=EPS)


def _product(graph: Graph, x: str, parameters: Inputs, weight: str, bias: str | None, output: str) -> str:
    """x [batch, length, width] times the transposed weight, plus bias."""
    transposed = graph.constant(weight, parameters[weight].numpy().T)
    if bias is None:
        return graph.op("MatMul", (x, transposed), output)
    product = graph.op("MatMul", (x, transposed), f"{output} product")
    return graph.op("Add", (product, graph.constant(bias, parameters[bias].numpy())), output)


def _linear(graph: Graph, x: str, parameters: Inputs, weight: str, bias: str | None, output: str) -> str:
    """x [rows, width] times the transposed weight, plus bias if there is one."""
    inputs = [x, graph.constant(weight, parameters[weight].numpy())]
    if bias is not None and parameters.get(bias) is not None:
        inputs.append(graph.constant(bias, parameters[bias].numpy()))
    return graph.op("Gemm", inputs, output, transB=1)
