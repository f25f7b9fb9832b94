"""Makes the torch.nn modules inside any model, and layers of Hugging Face models, compute with bigmodel_kernels."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from bigmodel_kernels import linear_choice
from bigmodel_kernels.integrations import hugging_face
from bigmodel_kernels.integrations.hugging_face_layers import Computed, is_conv1d
from bigmodel_kernels.nn.counterparts import COUNTERPARTS, adopt
from bigmodel_kernels.nn.feed_forward import FeedForward
from bigmodel_kernels.nn.fusion import LINEAR, is_plain, overrides
from bigmodel_kernels.nn.linear import Linear


@dataclass(frozen=True)
class ReplacementReport:
    """What ``replace_modules`` did. Names are as in ``model.named_modules()``; the model itself is "(model)"."""

    swapped: dict[str, str] = field(default_factory=dict)
    """name -> class of each module that now computes with bigmodel_kernels"""
    already: dict[str, str] = field(default_factory=dict)
    """name -> class of each module that did so before"""
    inside: dict[str, str] = field(default_factory=dict)
    """name -> which of those computes it, for each linear layer that is a part of one's op"""
    why: dict[str, str] = field(default_factory=dict)
    """name -> where ours is the faster one, for each linear layer swapped on its own"""
    left: dict[str, str] = field(default_factory=dict)
    """name -> the reason, for each module related to one that can be swapped, but left as it was"""
    no_counterpart: dict[str, int] = field(default_factory=dict)
    """class -> how many modules of it hold parameters and have no counterpart of ours"""

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} modules, {len(self.already)} were swapped before"]
        lines += [
            f"  {name}: {kind}" + (f" ({self.why[name]})" if name in self.why else "")
            for name, kind in self.swapped.items()
        ]
        if self.inside:
            lines.append(f"with {len(self.inside)} linear layers inside them")
        lines.append(f"left {len(self.left)} modules" + (":" if self.left else ""))
        for reason in dict.fromkeys(self.left.values()):
            first, *others = [name for name, each in self.left.items() if each == reason]
            lines.append(f"  {first}{f' and {len(others)} more' if others else ''}: {reason}")
        if self.no_counterpart:
            counts = ", ".join(f"{kind} x{count}" for kind, count in sorted(self.no_counterpart.items()))
            lines.append(f"no counterpart for: {counts}")
        return "\n".join(lines)


def replace_modules(model: torch.nn.Module) -> ReplacementReport:
    """Swaps torch.nn modules inside `model`, and `model` itself, for their bigmodel_kernels.nn counterparts, in place.

    Every module stays the same object with the same parameters, buffers, hooks and training mode, and computes
    differently from now on: an optimizer, a hook handle or a second parent that holds it stays right, and so do the
    names in state_dict. Classes swapped: MultiheadAttention, TransformerEncoderLayer, TransformerEncoder,
    TransformerDecoderLayer, TransformerDecoder, Transformer, LayerNorm and RMSNorm; Linear, and GPT-2's Conv1D, where
    ours is the faster one on the layer's device and in its dtype by the table in `linear_choice` (so call this when the
    model is where it shall run). Subclasses of them may compute something else and are left, with the reason in the
    report. Of Hugging Face models also, under whatever name a model has them: the RMS norms (Llama's, Gemma's,
    gpt-oss's, T5's) and feed-forward layers (Llama's gated one, ViT's, GPT-2's, T5's two, BERT's pair, and that of a
    layer like Whisper's). Calling it again changes nothing.

    Raises TypeError for a model that is not a torch.nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"[replace_modules] model is a {type(model).__name__}: expected a torch.nn.Module")
    report = ReplacementReport(no_counterpart=Counter())
    ours = {*COUNTERPARTS.values(), Linear, FeedForward}
    computed_by: dict[torch.nn.Module, str] = {}
    read_by: dict[torch.nn.Module, str] = {}
    for path, module in model.named_modules():  # parents before their children
        name = path or "(model)"
        if type(module) in ours or isinstance(module, Computed):
            report.already[name] = type(module).__name__
        elif module in computed_by:
            report.inside[name] = computed_by[module]
        elif module in read_by:
            report.left[name] = f"{read_by[module]} reads its parameters and does not call it"
        else:
            _swap(name, module, report)
        if name in report.swapped or name in report.already:
            computed_by |= dict.fromkeys(_linears_of(module), name)
        elif isinstance(module, torch.nn.MultiheadAttention) and not overrides(
            module, "forward", torch.nn.MultiheadAttention
        ):
            read_by[module.out_proj] = name
    return report


def _swap(name: str, module: torch.nn.Module, report: ReplacementReport) -> None:
    """Swaps one module, if it can be, and reports it."""
    layer = hugging_face.recognised(module)
    reason = _reason_to_leave(module) if layer is None else hugging_face.reason_to_leave(module, layer)
    faster = None
    if reason is None and (type(module) in LINEAR or is_conv1d(module)):
        faster, why = linear_choice.choice(module.weight, transposed=is_conv1d(module))
        reason = None if faster else why
    if reason is not None:
        report.left[name] = reason
        return
    if layer is not None:
        hugging_face.adopt(module, layer)
    elif faster:
        module.__class__ = Linear
    elif not adopt(module):
        if next(module.parameters(recurse=False), None) is not None:
            report.no_counterpart[type(module).__name__] += 1
        return
    report.swapped[name] = type(module).__name__
    if faster:
        report.why[name] = why


def _linears_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The linear layers that one of our modules computes itself."""
    if isinstance(module, Computed):
        held = [getattr(module, name) for name in module._bmk_linears]
        return [each for each in held if is_plain(each, *LINEAR) or is_conv1d(each)]
    return [child for child in module.children() if is_plain(child, *LINEAR)]


def _reason_to_leave(module: torch.nn.Module) -> str | None:
    """Why a module of a class that can be swapped, or of a subclass of one, must stay; None when it need not."""
    for torch_class, our_class in {**COUNTERPARTS, torch.nn.Linear: Linear}.items():
        if not isinstance(module, torch_class) or type(module) is our_class:
            continue
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        plain = LINEAR if torch_class is torch.nn.Linear else (torch_class,)
        if torch.nn.utils.parametrize.is_parametrized(module):
            return f"a parametrized torch.nn.{torch_class.__name__}"
        if type(module) not in plain:
            return f"{kind} is a subclass of torch.nn.{torch_class.__name__} and may compute something else"
        if "forward" in module.__dict__:
            return f"its forward was replaced on the torch.nn.{torch_class.__name__} itself"
    return None
