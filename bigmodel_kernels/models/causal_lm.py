"""A decoder-only Transformer that predicts the next token, in the style of GPT-2 or of Llama.

    x = embed(tokens) [+ position]
    for each layer:    y = x + attention(norm1(x))          causal, query and key turned by rotary where wanted
                       x = y + feed_forward(norm2(y))
    logits = W norm(x)                                       W the embedding's own weight where the head is tied

The layers are pre-norm (Radford et al., "Language models are unsupervised multitask learners", 2019; Touvron et al.,
"LLaMA", 2023). The training loss never forms the logits (``bmk.linear_cross_entropy``).
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigmodel_kernels import functional
from bigmodel_kernels.models.kv_cache import KVCache
from bigmodel_kernels.nn import FeedForward, LayerNorm, RMSNorm, RotaryEmbedding, RotaryScaling
from bigmodel_kernels.nn.add_norm import add_norm
from bigmodel_kernels.nn.fusion import apply_linear

CHOICES = {"positions": ("learned", "rotary"), "norm": ("layer", "rms"), "gate": (None, "hidden")}


@dataclass(frozen=True)
class CausalLMConfig:
    """What a CausalLM is made of; `gpt` and `llama` fill in the two styles.

    vocabulary: number of tokens. width: size of each position's vector. layers, heads: how many. kv_heads: heads of key
    and value, a divisor of heads; None: heads. head_dim: None: width / heads. hidden: inside the feed-forward layers;
    None: 4 * width. length: the longest sequence. positions: "learned" or "rotary", with base `theta` and `scaling` of
    its frequencies, if any. norm: "layer" or "rms", with `eps`. activation: "gelu", "gelu_tanh", "silu" or "relu";
    gate: None, or "hidden" as in SwiGLU. bias: whether the layers' linear maps have one. tied: whether the head's
    weight is the embedding's. dropout: probability, in training, on attention weights and inside the feed-forward
    layers.
    """

    vocabulary: int = 256
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    length: int = 512
    positions: str = "learned"
    theta: float = 10000.0
    scaling: RotaryScaling | None = None
    norm: str = "layer"
    eps: float = 1e-5
    activation: str = "gelu_tanh"
    gate: str | None = None
    bias: bool = True
    tied: bool = True
    dropout: float = 0.0

    @classmethod
    def gpt(cls, **fields) -> "CausalLMConfig":
        """GPT-2's style: learned positions, LayerNorm, GELU, a tied head."""
        return cls(**fields)

    @classmethod
    def llama(cls, **fields) -> "CausalLMConfig":
        """Llama's style: rotary positions, RMSNorm, SwiGLU, no biases, a head of its own."""
        style = {"positions": "rotary", "norm": "rms", "activation": "silu", "gate": "hidden"}
        return cls(**{**style, "bias": False, "tied": False, **fields})

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"[CausalLM] {name} is {getattr(self, name)!r}: expected one of {allowed}")
        for name in ("vocabulary", "width", "layers", "heads", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"[CausalLM] {name} is {getattr(self, name)}: expected at least 1")
        for name in ("kv_heads", "head_dim", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"[CausalLM] {name} is {value}: expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"[CausalLM] dropout is {self.dropout}: expected 0 or more, below 1")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"[CausalLM] heads is {self.heads}: expected a divisor of width, {self.width}, or a head_dim"
            )
        if self.heads % self.key_heads:
            raise ValueError(f"[CausalLM] kv_heads is {self.kv_heads}: expected a divisor of heads, {self.heads}")

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def features(self) -> int:
        """Of one head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim


class CausalAttention(nn.Module):
    """Attention of every position to itself and those before it, with one projection for query, key and value."""

    def __init__(self, config: CausalLMConfig, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.features = config.heads, config.key_heads, config.features
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.features, bias=config.bias)
        self.out = nn.Linear(self.heads * self.features, config.width, bias=config.bias)
        self.rotary = rotary

    def forward(self, x: Tensor, positions: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """x [batch, length, width]; positions [batch, length], or None: 0, 1, ..."""
        packed = apply_linear(self.qkv, x).unflatten(-1, (-1, self.features)).transpose(1, 2)
        query, key, value = packed.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.rotary is not None:
            query, key = self.rotary(query, key, positions)
        if cache is not None:
            attended = cache.attend(layer, query, key, value)
        else:
            dropout_p = self.dropout if self.training else 0.0
            attended = functional.attention(query, key, value, causal=True, dropout_p=dropout_p)
        return apply_linear(self.out, attended.transpose(1, 2).flatten(-2))


class CausalLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: CausalLMConfig, index: int, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        self.index = index
        self.norm1 = make_norm(config)
        self.attention = CausalAttention(config, rotary)
        self.norm2 = make_norm(config)
        hidden = config.hidden or 4 * config.width
        self.feed_forward = FeedForward(
            config.width, hidden, config.activation, config.gate, config.bias, dropout=config.dropout
        )

    def forward(self, x: Tensor, positions: Tensor | None, cache: KVCache | None) -> Tensor:
        attended = self.attention(self.norm1(x), positions, cache, self.index)
        y, n = add_norm(self.norm2, attended, x)
        return self.feed_forward(n, residual=y)


class CausalLM(nn.Module):
    """A decoder-only language model (see the module's docstring for the maths, CausalLMConfig for the choices).

    `checkpointing`, an attribute: in training, keep only each layer's input for the backward pass and compute the rest
    of the layer again there.
    """

    def __init__(self, config: CausalLMConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.length, config.width) if config.positions == "learned" else None
        rotary = None  # one table of angles for all layers
        if config.positions == "rotary":
            rotary = RotaryEmbedding(config.features, config.theta, max_positions=config.length, scaling=config.scaling)
        self.layers = nn.ModuleList(CausalLayer(config, index, rotary) for index in range(config.layers))
        self.norm = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(_initialise)

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, width]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [batch, length, vocabulary] of tokens, int64 [batch, length]; see `hidden`."""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last layer's normalised output [batch, length, width].

        tokens: int64 [batch, length]; as none sees a later one, shorter sequences may end in padding. cache: keys and
        values of each sequence's tokens before these, and then of these; under torch.no_grad().
        Raises ValueError for tokens of another shape, and for more of them than the config's length.
        """
        if tokens.dim() != 2:
            raise ValueError(f"[CausalLM] tokens has shape {list(tokens.shape)}: expected [batch, length]")
        first = 0 if cache is None else cache.longest
        last = first + tokens.size(1)
        if last > self.config.length:
            raise ValueError(f"[CausalLM] the sequence has length {last}: expected at most {self.config.length}")
        positions = None if first == 0 else cache.positions(tokens.size(1))
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + (self.position.weight[: tokens.size(1)] if positions is None else self.position(positions))
        for layer in self.layers:
            if self.checkpointing and self.training and cache is None:
                x = checkpoint(layer, x, positions, None, use_reentrant=False)
            else:
                x = layer(x, positions, cache)
        if cache is not None:
            cache.advance(tokens.size(1))
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] to [..., vocabulary]."""
        return functional.linear(hidden, self.head_weight) if self.head is None else apply_linear(self.head, hidden)

    def loss(self, tokens: Tensor, targets: Tensor, **options) -> Tensor:
        """The cross-entropy of tokens [batch, length] against targets of the same shape; options as
        ``bmk.linear_cross_entropy`` takes them."""
        return functional.linear_cross_entropy(self.hidden(tokens), self.head_weight, targets, **options)

    @classmethod
    def from_hugging_face(cls, config, state_dict: dict[str, Tensor]) -> "CausalLM":
        """A model of a Hugging Face GPT-2 or Llama's configuration and weights: see `models.hugging_face_keys`."""
        from bigmodel_kernels.models import hugging_face_keys

        model = cls(hugging_face_keys.config_of(config))
        model.load_state_dict(hugging_face_keys.converted(config, state_dict))
        return model

    def generate(self, prompts, max_new_tokens: int, **options) -> list[list[int]]:
        """New tokens for each prompt: see ``bigmodel_kernels.models.generation.generate``."""
        from bigmodel_kernels.models.generation import generate

        return generate(self, prompts, max_new_tokens, **options)


def make_norm(config: CausalLMConfig) -> nn.Module:
    """The config's normalisation."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(config.width, eps=config.eps)


def _initialise(module: nn.Module) -> None:
    """As GPT-2: normal numbers of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
