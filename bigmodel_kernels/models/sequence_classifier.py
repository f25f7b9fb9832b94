"""A Transformer that puts a sequence of tokens, or an image cut into patches, into one of a few classes.

    x = embed(input) + position
    for each layer:    y = x + attention(norm1(x))
                       n = norm2(y)
                       x = y + feed_forward(n)
    head="linear":     logits = W mean(norm(x)) + b
    head="concat":     logits = W [mean(norm(x)); mean(n)] + b        n of the last layer

The layers are pre-norm (Xiong et al., 2020; https://arxiv.org/abs/2002.04745). The concat head reads what the last
feed-forward layer made beside what the last attention made, and never forms the pair in memory:
W [f; a] = W_f f + W_a a.
"""

import torch
from torch import Tensor, nn

from bigmodel_kernels import functional
from bigmodel_kernels.nn import FeedForward, LayerNorm, MultiheadAttention
from bigmodel_kernels.nn.add_norm import add_norm


class FusedCompute:
    """What the model is made of: bigmodel_kernels' modules and ops."""

    MultiheadAttention = MultiheadAttention
    LayerNorm = LayerNorm
    FeedForward = FeedForward
    add_norm = staticmethod(add_norm)

    @staticmethod
    def linear_of_pair(linear: nn.Linear, first: Tensor, second: Tensor) -> Tensor:
        w_first, w_second = linear.weight.split([first.size(-1), second.size(-1)], dim=1)
        return functional.linear(second, w_second, residual=functional.linear(first, w_first, linear.bias))


class TorchFeedForward(FeedForward):
    """FeedForward as a chain of torch.nn's modules."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.unfused(x) if residual is None else residual + self.unfused(x)


class TorchCompute:
    """The same, of torch.nn's own modules: for comparison."""

    MultiheadAttention = nn.MultiheadAttention
    LayerNorm = nn.LayerNorm
    FeedForward = TorchFeedForward

    @staticmethod
    def add_norm(norm: nn.Module, branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + branch
        return total, norm(total)

    @staticmethod
    def linear_of_pair(linear: nn.Linear, first: Tensor, second: Tensor) -> Tensor:
        return linear(torch.cat([first, second], dim=-1))


COMPUTE = {"bigmodel": FusedCompute, "torch": TorchCompute}


class Layer(nn.Module):
    """One pre-norm Transformer layer."""

    def __init__(self, width, heads, hidden, activation, gate, dropout, compute) -> None:
        super().__init__()
        self.compute = compute
        self.norm1 = compute.LayerNorm(width)
        self.attention = compute.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm2 = compute.LayerNorm(width)
        self.feed_forward = compute.FeedForward(width, hidden, activation, gate, dropout=dropout)

    def forward(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [batch, length, width] to the layer's output and norm2's, what the feed-forward layer read; both as x."""
        n = self.norm1(x)
        attended, _ = self.attention(n, n, n, key_padding_mask=padding, need_weights=False)
        y, n = self.compute.add_norm(self.norm2, attended, x)
        return self.feed_forward(n, residual=y), n


class PatchEmbedding(nn.Module):
    """Cuts images [batch, channels, height, width] into patches and maps each to [batch, patches, model_width]."""

    def __init__(self, image: tuple[int, int, int], patch: tuple[int, int], model_width: int) -> None:
        super().__init__()
        channels, height, width = image
        if height % patch[0] or width % patch[1]:
            raise ValueError(f"[SequenceClassifier] patch {patch} does not divide the image {height}x{width}")
        self.patch = patch
        self.linear = nn.Linear(channels * patch[0] * patch[1], model_width)

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.patch
        patches = images.unfold(2, rows, rows).unfold(3, columns, columns)
        patches = patches.permute(0, 2, 3, 1, 4, 5)  # [batch, down, across, channels, rows, columns]
        return self.linear(patches.flatten(3).flatten(1, 2))


class SequenceClassifier(nn.Module):
    """Classifies sequences of tokens, or images by their patches (see the module's docstring for the maths).

    Args:
        vocabulary: number of different tokens.
        width: size of each position's vector.
        heads: attention heads; divides `width`.
        classes: number of classes.
        layers: number of layers.
        hidden: width of the feed-forward layers' hidden part; None: 4 * width.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        gate: None, "hidden" or "input": the feed-forward layers' gate, see ``bmk.nn.FeedForward``.
        head: "linear" or "concat".
        dropout: probability, in training, on attention weights and on the feed-forward layers' hidden part.
        length: the longest sequence of tokens.
        image: (channels, height, width) of images to be classified; None: tokens. `vocabulary` and `length` then have
            no meaning.
        patch: (height, width) of the patches an image is cut into.
        compute: "bigmodel", or "torch" for the same model, parameter by parameter and, from the same seed, number by
            number, made of torch.nn's own modules.

    Raises ValueError for an unknown `head` or `compute`, or a patch that does not divide the image.
    """

    def __init__(
        self,
        vocabulary: int = 1000,
        width: int = 512,
        heads: int = 8,
        classes: int = 10,
        layers: int = 1,
        hidden: int | None = None,
        activation: str = "relu",
        gate: str | None = "input",
        head: str = "concat",
        dropout: float = 0.0,
        length: int = 64,
        image: tuple[int, int, int] | None = None,
        patch: tuple[int, int] = (2, 2),
        compute: str = "bigmodel",
    ) -> None:
        super().__init__()
        if head not in ("linear", "concat"):
            raise ValueError(f"[SequenceClassifier] head is {head!r}: expected 'linear' or 'concat'")
        if compute not in COMPUTE:
            raise ValueError(f"[SequenceClassifier] compute is {compute!r}: expected one of {', '.join(COMPUTE)}")
        if layers < 1:
            raise ValueError(f"[SequenceClassifier] layers is {layers}: expected at least 1")
        self.head_kind = head
        self.compute = COMPUTE[compute]
        if image is None:
            self.embedding = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.embedding.weight, std=0.02)
        else:
            self.embedding = PatchEmbedding(image, patch, width)
            length = (image[1] // patch[0]) * (image[2] // patch[1])
        self.position = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.position, std=0.02)
        options = (width, heads, hidden or 4 * width, activation, gate, dropout, self.compute)
        self.layers = nn.ModuleList(Layer(*options) for _ in range(layers))
        self.norm = self.compute.LayerNorm(width)
        self.head = nn.Linear(2 * width if head == "concat" else width, classes)

    def forward(self, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits [batch, classes].

        inputs: tokens, int64 [batch, length], or images [batch, channels, height, width] in the parameters' dtype.
        padding: boolean [batch, length], True where a token is padding; None: there is none.
        """
        x = self.embedding(inputs)
        if x.size(1) > self.position.size(0):
            raise ValueError(
                f"[SequenceClassifier] the sequence has length {x.size(1)}: expected at most {self.position.size(0)}"
            )
        x = x + self.position[: x.size(1)]
        for layer in self.layers:
            x, n = layer(x, padding)
        made = mean(self.norm(x), padding)
        if self.head_kind == "linear":
            return self.head(made)
        return self.compute.linear_of_pair(self.head, made, mean(n, padding))


def mean(x: Tensor, padding: Tensor | None) -> Tensor:
    """[batch, length, width] to [batch, width]: the mean over the positions that are not padding (0 if all are)."""
    if padding is None:
        return x.mean(1)
    kept = (~padding)[..., None].to(x.dtype)
    return (x * kept).sum(1) / kept.sum(1).clamp(min=1)
