"""The Triton backend: the ops of `torch.ops.bigmodel` once more, as `torch.ops.bigmodel_triton`.

Importing this package registers them, for CUDA tensors, and under TRITON_INTERPRET=1, where Triton runs kernels in
numpy, for CPU tensors too. `backends.py` imports it where it can run, and attaches fakes and gradients.
"""

import importlib

import torch
import triton

NAMESPACE = "bigmodel_triton"

# Where the function of each op lives. Its parameters are those of the op's schema, and it assumes checked tensors.
_MODULES = {
    "attention": "attention_forward",
    "attention_backward": "attention_backward",
    "attention_weights": "attention_weights",
    "attention_weights_backward": "attention_weights_backward",
    "linear": "linear",
    "linear_backward": "linear_backward",
    "feed_forward": "feed_forward",
    "feed_forward_backward": "feed_forward_backward",
    "add_norm": "add_norm",
    "add_norm_backward": "add_norm_backward",
    "attention_varlen": "attention_varlen",
    "attention_varlen_backward": "attention_varlen",
    "attention_decode": "attention_decode",
    "rotary": "rotary",
    "rotary_": "rotary",
    "linear_cross_entropy": "linear_cross_entropy",
    "linear_cross_entropy_backward": "linear_cross_entropy_backward",
}


# An op of the schema without a kernel here: a GPU reads weights as they lie.
_WITHOUT_KERNELS = ("linear_pack",)


def _register() -> torch.library.Library:
    """Defines the schemas, read from torch.ops.bigmodel so that they cannot differ, and what runs them."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for op in (*_MODULES, *_WITHOUT_KERNELS):
        schema = str(getattr(torch.ops.bigmodel, op).default._schema)
        library.define(schema.removeprefix("bigmodel::"))
    for op, module in _MODULES.items():
        function = getattr(importlib.import_module(f".{module}", __name__), op)
        for key in ("CUDA", "CPU") if triton.knobs.runtime.interpret else ("CUDA",):
            library.impl(op, function, key)
    return library


_library = _register()  # the ops last as long as this object
