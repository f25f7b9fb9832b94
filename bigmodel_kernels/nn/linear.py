"""torch.nn.Linear as `bmk.linear` where that is the faster of the two."""

import torch
from torch import Tensor

from bigmodel_kernels import functional, linear_choice
from bigmodel_kernels.nn.members import parameter

_PLAIN = (torch.nn.Parameter, Tensor)


class Linear(torch.nn.Linear):
    """torch.nn.Linear, each call computed by ``bmk.linear`` or by torch, as `linear_choice` says is faster for its
    dtype, device and number of rows.

    Input [..., in_features], output [..., out_features]; errors as torch.nn.Linear.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = parameter(self, "weight")
        if type(weight) in _PLAIN and linear_choice.ours_is_faster(input, weight):
            try:
                return functional.linear(input, weight, parameter(self, "bias"))
            except ValueError:  # our op refuses what torch computes (nested tensors) or has an error for
                pass
        return super().forward(input)
