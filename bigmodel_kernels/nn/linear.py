"""torch.nn.Linear as `bmk.linear` where that is the faster of the two."""

import torch
from torch import Tensor

from bigmodel_kernels import functional, linear_choice


class Linear(torch.nn.Linear):
    """torch.nn.Linear, each call computed by ``bmk.linear`` or by torch, as `linear_choice` says is faster for its
    dtype, device and number of rows.

    Input [..., in_features], output [..., out_features]; errors as torch.nn.Linear.
    """

    def forward(self, input: Tensor) -> Tensor:
        if type(self.weight) in (Tensor, torch.nn.Parameter) and linear_choice.ours_is_faster(input, self.weight):
            return functional.linear(input, self.weight, self.bias)
        return super().forward(input)
