"""Makes the torch.nn modules inside any model, and layers of Hugging Face models, compute with bigmodel_kernels."""

from collections import Counter
from dataclasses import dataclass

import torch

from bigmodel_kernels.integrations import hugging_face
from bigmodel_kernels.nn.counterparts import COUNTERPARTS, adopt


@dataclass(frozen=True)
class ReplacementReport:
    """What ``replace_modules`` did. Names are as in ``model.named_modules()``; the model itself is "(model)"."""

    swapped: dict[str, str]
    """name -> class of each module that now computes with bigmodel_kernels"""
    already: dict[str, str]
    """name -> class of each module that did so before"""
    left: dict[str, str]
    """name -> the reason, for each module related to one that can be swapped, but left as it was"""
    no_counterpart: dict[str, int]
    """class -> how many modules of it hold parameters and have no counterpart of ours"""

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} modules, {len(self.already)} were swapped before"]
        lines += [f"  {name}: {kind}" for name, kind in self.swapped.items()]
        lines.append(f"left {len(self.left)} modules" + (":" if self.left else ""))
        lines += [f"  {name}: {reason}" for name, reason in self.left.items()]
        if self.no_counterpart:
            counts = ", ".join(f"{kind} x{count}" for kind, count in sorted(self.no_counterpart.items()))
            lines.append(f"no counterpart for: {counts}")
        return "\n".join(lines)


def replace_modules(model: torch.nn.Module) -> ReplacementReport:
    """Swaps torch.nn modules inside `model`, and `model` itself, for their bigmodel_kernels.nn counterparts, in place.

    Every module stays the same object with the same parameters, buffers, hooks and training mode, and computes
    differently from now on: an optimizer, a hook handle or a second parent that holds it stays right. Classes swapped:
    MultiheadAttention, TransformerEncoderLayer, TransformerEncoder, TransformerDecoderLayer, TransformerDecoder,
    Transformer, LayerNorm and RMSNorm. Subclasses of them may compute something else and are left, with the reason in
    the report. Of Hugging Face models also the RMS norms (Llama's, Gemma's, gpt-oss's, T5's) and feed-forward layers
    (Llama's gated one, ViT's, T5's two), under whatever name a model has them. Calling it again changes nothing.

    Raises TypeError for a model that is not a torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"[replace_modules] model is a {type(model).__name__}: expected a torch.nn.Module")
    swapped, already, left, no_counterpart = {}, {}, {}, Counter()
    ours = set(COUNTERPARTS.values())
    for path, module in model.named_modules():
        name = path or "(model)"
        reason = _reason_to_leave(module)
        layer = hugging_face.recognised(module)
        if layer is not None:
            reason = hugging_face.reason_to_leave(module, layer)
        if type(module) in ours or isinstance(module, hugging_face.Computed):
            already[name] = type(module).__name__
        elif reason is not None:
            left[name] = reason
        elif layer is not None:
            hugging_face.adopt(module, layer)
            swapped[name] = type(module).__name__
        elif adopt(module):
            swapped[name] = type(module).__name__
        elif next(module.parameters(recurse=False), None) is not None:
            no_counterpart[type(module).__name__] += 1
    return ReplacementReport(swapped, already, left, dict(no_counterpart))


def _reason_to_leave(module: torch.nn.Module) -> str | None:
    """Why a module of a class that can be swapped, or of a subclass of one, must stay; None when it need not."""
    for torch_class, our_class in COUNTERPARTS.items():
        if not isinstance(module, torch_class) or type(module) is our_class:
            continue
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if torch.nn.utils.parametrize.is_parametrized(module):
            return f"a parametrized torch.nn.{torch_class.__name__}"
        if type(module) is not torch_class:
            return f"{kind} is a subclass of torch.nn.{torch_class.__name__} and may compute something else"
        if "forward" in module.__dict__:
            return f"its forward was replaced on the torch.nn.{torch_class.__name__} itself"
    return None
