"""What the contenders compute: the rows, as data that every worker understands. The standard library only."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Attention:
    """As bench_attention's Shape."""

    batch: int
    heads: int
    length: int
    head_dim: int
    kv_heads: int | None = None
    causal: bool = False
    padding: bool = False
    additive: bool = False


@dataclass(frozen=True)
class Decode:
    """One new query per sequence over a cache of `length` keys and values."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int


@dataclass(frozen=True)
class Module:
    """As bench_nn's Shape: kind is "MHA", "MHA weights" or "EncoderLayer" (GELU, hidden layer of four times width)."""

    kind: str
    batch: int
    length: int
    width: int
    heads: int


@dataclass(frozen=True)
class FeedForward:
    """As bench_feed_forward's Shape; gate "hidden" with "silu" is SwiGLU."""

    rows: int
    width: int
    hidden: int
    activation: str
    gate: str | None = None


@dataclass(frozen=True)
class Linear:
    """As bench_linear's Shape."""

    rows: int
    width: int
    out_width: int


@dataclass(frozen=True)
class Norm:
    """kind: "LayerNorm", "RMSNorm", or "add+LayerNorm", which returns the sum too."""

    kind: str
    rows: int
    width: int


@dataclass(frozen=True)
class Classifier:
    """A training step: embedding, self-attention, mean over positions, linear, cross-entropy, backward, Adam."""

    vocabulary: int = 1000
    width: int = 512
    heads: int = 8
    classes: int = 10
    batch: int = 32
    length: int = 32


Workload = Attention | Decode | Module | FeedForward | Linear | Norm | Classifier
WORKLOADS: dict[str, type] = {
    kind.__name__: kind for kind in (Attention, Decode, Module, FeedForward, Linear, Norm, Classifier)
}


@dataclass(frozen=True)
class PeerRow:
    """A workload in one dtype, forward or forward and backward; smoke: one of the few of a quick run."""

    work: Workload
    dtype: str
    backward: bool = False
    smoke: bool = False

    @property
    def has_parameters(self) -> bool:
        """Whether it is a module's work: its weights are then as warm as the call before left them."""
        return isinstance(self.work, Module | FeedForward | Linear | Classifier)

    def to_json(self) -> dict:
        """For a worker."""
        return {"kind": type(self.work).__name__, "work": asdict(self.work)} | {
            "dtype": self.dtype,
            "backward": self.backward,
        }

    @staticmethod
    def from_json(fields: dict) -> "PeerRow":
        return PeerRow(WORKLOADS[fields["kind"]](**fields["work"]), fields["dtype"], fields["backward"])


_LONG = [(1, 16, 2048, 64), (1, 16, 2048, 128), (4, 8, 512, 64), (8, 12, 128, 64)]
_FEED_FORWARDS = [FeedForward(2048, 512, 2048, "gelu"), FeedForward(512, 1024, 4096, "gelu")]
_TINY = [Attention(1, 4, 32, 32), Module("MHA", 1, 16, 64, 4), Module("EncoderLayer", 1, 16, 64, 4)]


def rows() -> list[PeerRow]:
    """Every row, in the table's order."""
    both = [row for dtype in ("fp32", "bf16") for row in _rows_of(dtype)]
    half = [
        Attention(1, 16, 2048, 64),
        Attention(1, 16, 2048, 64, causal=True),
        Attention(4, 8, 512, 64),
        Linear(2048, 512, 2048),
        _FEED_FORWARDS[0],
    ]
    return both + [
        *(PeerRow(work, "fp16") for work in half),
        *(PeerRow(work, "fp16", backward=True) for work in (Attention(4, 8, 512, 64), Linear(2048, 512, 2048))),
    ]


def _rows_of(dtype: str) -> Iterator[PeerRow]:
    for work in _TINY:
        yield PeerRow(work, dtype, smoke=dtype == "fp32" or isinstance(work, Attention))
    for shape in _LONG:
        for causal in (False, True):
            yield PeerRow(Attention(*shape, causal=causal), dtype)
    yield PeerRow(Attention(1, 32, 4096, 128, kv_heads=8, causal=True), dtype)
    yield PeerRow(Attention(4, 8, 512, 64, padding=True), dtype)
    yield PeerRow(Attention(4, 8, 512, 64, additive=True), dtype)
    for shape in _LONG[:3]:
        for causal in (False, True):
            yield PeerRow(Attention(*shape, causal=causal), dtype, backward=True)
    for batch in (1, 8):
        for length in (2048, 8192):
            yield PeerRow(Decode(batch, 32, 8, length, 128), dtype)
    yield from _module_rows(dtype)
    for kind in ("LayerNorm", "RMSNorm", "add+LayerNorm"):
        for size in ((2048, 1024), (16384, 4096)):
            for backward in (False, True):
                yield PeerRow(Norm(kind, *size), dtype, backward)
    yield PeerRow(Classifier(), dtype, backward=True)


def _module_rows(dtype: str) -> Iterator[PeerRow]:
    for kind in ("MHA", "MHA weights"):
        for size in ((4, 512, 512, 8), (1, 2048, 1024, 16)):
            yield PeerRow(Module(kind, *size), dtype)
    for size in ((4, 512, 512, 8), (1, 2048, 1024, 16)):
        yield PeerRow(Module("MHA", *size), dtype, backward=True)
    for work in _FEED_FORWARDS:
        for backward in (False, True):
            yield PeerRow(work, dtype, backward)
    for tokens in (1, 16):
        yield PeerRow(FeedForward(tokens, 4096, 11008, "silu", "hidden"), dtype)
    for backward in (False, True):
        yield PeerRow(Module("EncoderLayer", 4, 512, 512, 8), dtype, backward)
