"""Which layers of Hugging Face models compute with bigmodel_kernels, and how they are told.

transformers repeats the same few layers under hundreds of names, one set per model. So a layer is recognised by the
code of its forward: where that is the code of a layer that we know, we know what it computes.
"""

import ast
import functools
import importlib
import inspect
import sys
import textwrap

import torch

from bigmodel_kernels.integrations import hugging_face_layers as layers
from bigmodel_kernels.integrations.hugging_face_layers import Computed

# (module, class, what computes in its place, methods that say what it computes)
_KNOWN = (
    ("models.llama.modeling_llama", "LlamaRMSNorm", layers.RMSNorm, ("forward",)),
    ("models.gpt_oss.modeling_gpt_oss", "GptOssRMSNorm", layers.RMSNormRoundedOnce, ("forward",)),
    ("models.gemma2.modeling_gemma2", "Gemma2RMSNorm", layers.RMSNormAboutOne, ("forward", "_norm")),
    ("models.t5.modeling_t5", "T5LayerNorm", layers.RMSNormOfT5, ("forward",)),
    ("models.llama.modeling_llama", "LlamaMLP", layers.GatedMLP, ("forward",)),
    ("models.vit.modeling_vit", "ViTMLP", layers.MLP, ("forward",)),
    ("models.t5.modeling_t5", "T5DenseActDense", layers.DenseOfT5, ("forward",)),
    ("models.t5.modeling_t5", "T5DenseGatedActDense", layers.GatedDenseOfT5, ("forward",)),
    ("models.gpt2.modeling_gpt2", "GPT2MLP", layers.MLPOfGPT2, ("forward",)),
    ("models.bert.modeling_bert", "BertIntermediate", layers.Intermediate, ("forward",)),
    ("models.bert.modeling_bert", "BertOutput", layers.Output, ("forward",)),
    ("pytorch_utils", "Conv1D", layers.Conv1D, ("forward",)),
)
_UNTOLD = "its forward uses fc1 or activation_fn otherwise than once, as activation_fn(fc1(x))"


def recognised(module: torch.nn.Module) -> type[Computed] | None:
    """What computes in the place of a layer of transformers; None for any other module."""
    theirs = type(module)
    if sys.modules.get("transformers") is None or theirs.__module__.partition(".")[0] == "torch":
        return None
    return _recognised(theirs)


def reason_to_leave(module: torch.nn.Module, ours: type[Computed]) -> str | None:
    """Why a recognised layer must stay as it is; None when it need not."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return f"a parametrized {type(module).__name__}"
    if "forward" in module.__dict__:
        return f"its forward was replaced on the {type(module).__name__} itself"
    if ours is layers.SaysFC1 and not _says_fc1_once(type(module)):
        return _UNTOLD
    if ours._bmk_activation:
        activation = getattr(module, ours._bmk_activation)
        if layers.activation_of(activation) is None:
            return f"its activation, {activation}, is not one of feed_forward's"
    return None


def adopt(module: torch.nn.Module, ours: type[Computed]) -> None:
    """Makes a recognised layer compute as `ours`, in place."""
    module.__class__ = layers.mixed(ours, type(module))


@functools.cache
def _recognised(theirs: type) -> type[Computed] | None:
    for module, name, ours, methods in _KNOWN:
        known = getattr(importlib.import_module(f"transformers.{module}"), name, None)
        # Not every version of transformers has all of them.
        if known is not None and all(_same_code(theirs, known, method) for method in methods):
            return ours
    of_transformers = any(base.__module__.startswith("transformers.") for base in theirs.__mro__)
    code = getattr(inspect.unwrap(theirs.forward), "__code__", None)
    if of_transformers and code is not None and {"fc1", "activation_fn"} <= set(code.co_names):
        return layers.SaysFC1
    return None


def _same_code(one: type, other: type, method: str) -> bool:
    """Whether two classes have a method of the same code: instructions, names and constants but for the docstring."""
    codes = []
    for function in (getattr(one, method, None), getattr(other, method, None)):
        # A decorated function's own code says nothing about the function inside.
        if not hasattr(function, "__code__") or function.__closure__ or hasattr(function, "__wrapped__"):
            return False
        code = function.__code__
        codes.append((code.co_code, code.co_names, [each for each in code.co_consts if each != function.__doc__]))
    return codes[0] == codes[1]


@functools.cache
def _says_fc1_once(theirs: type) -> bool:
    """Whether a class's forward uses fc1 and activation_fn once each, as self.activation_fn(self.fc1(x)), and its self
    for nothing but reading attributes: then it cannot tell a stand-in from itself."""
    forward = inspect.unwrap(theirs.forward)
    if forward.__closure__:  # super()
        return False
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, SyntaxError, TypeError):  # no source, or not one of a function
        return False
    nodes = list(ast.walk(source))
    itself = source.args.args[0].arg
    read = [
        node
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id == itself
    ]
    if len(read) != sum(isinstance(node, ast.Name) and node.id == itself for node in nodes):
        return False
    if sorted(node.attr for node in read if node.attr in ("fc1", "activation_fn")) != ["activation_fn", "fc1"]:
        return False
    return any(_is_call(node, f"{itself}.activation_fn") and _is_call(node.args[0], f"{itself}.fc1") for node in nodes)


def _is_call(node: ast.AST, function: str) -> bool:
    """Whether a node calls this function with one argument."""
    is_call = isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords
    return is_call and ast.unparse(node.func) == function
