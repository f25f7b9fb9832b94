"""The handwritten digits that come with scikit-learn: 1,797 real images of 8x8 pixels, ten classes.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PIXEL_LEVELS = 16
HELD_OUT = 0.2


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
