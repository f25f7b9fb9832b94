"""The handwritten digits that come with scikit-learn: 1,797 real images of 8x8 pixels, ten classes.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LEVELS = 16
HELD_OUT = 0.2

# The most that a distortion of strength 1 does: radians, factors, and shares of half the image (0.6 pixels).
_TURN, _STRETCH, _SHEAR, _SHIFT = 0.2, 0.12, 0.15, 0.15


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8], fp32 in 0 to 1, and labels, int64 [n]; the held-out part is never trained on."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_digits(samples: int, seed: int) -> Digits:
    """Shuffles all images by `seed`, takes the first `samples`, and holds a fifth of them out."""
    import sklearn.datasets  # takes a second: only training pays for it

    raw = sklearn.datasets.load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / PIXEL_LEVELS
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:samples]
    held_out, trained = order[: round(samples * HELD_OUT)], order[round(samples * HELD_OUT) :]
    return Digits(images[trained], labels[trained], images[held_out], labels[held_out])


def tokens_of(images: Tensor) -> Tensor:
    """Each pixel's intensity as a token: [n, 1, 8, 8] in 0 to 1 -> int64 [n, 64] in 0 to 16."""
    return (images * PIXEL_LEVELS).round().long().flatten(1)


def distorted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image [n, 1, 8, 8] a little turned, stretched, sheared and shifted, as by another hand."""

    def at_most(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit * strength

    angle, shear = at_most(_TURN), at_most(_SHEAR)
    across, down = 1 + at_most(_STRETCH), 1 + at_most(_STRETCH)
    first_row = [angle.cos() * across, shear - angle.sin(), at_most(_SHIFT)]
    second_row = [angle.sin(), angle.cos() * down, at_most(_SHIFT)]
    matrices = torch.stack([torch.stack(first_row, dim=-1), torch.stack(second_row, dim=-1)], dim=1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
