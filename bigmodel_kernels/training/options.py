"""Everything that decides how a training run goes."""

import math
from dataclasses import dataclass, fields

INPUTS = ("patches", "pixels")
PATCHES = ("1x8", "2x2", "2x4", "4x4")
DTYPES = ("fp32", "bf16")
LEAST_SEED, MOST_SEED = -(1 << 63), (1 << 64) - 1  # a torch.Generator's


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, on what, and how. Two runs of equal options compute equal losses.

    inputs: how an 8x8 image becomes a sequence: "patches", one vector per patch of its pixels; "pixels", 64 tokens,
        each the pixel's intensity (0 to 16), looked up in the vocabulary.
    patch: height x width: "1x8" (rows), "2x2", "2x4" or "4x4"; not used with "pixels".
    vocabulary, width, heads, classes, layers, hidden, activation, gate, head, dropout: as SequenceClassifier takes
        them; gate "none" is no gate.
    learning_rate: Adam's, reached after `warmup` steps and then multiplied by `decay` after every epoch.
    distortion: how much the training images are turned, stretched, sheared and shifted at random; 0: not at all.
    epochs: at most; the run ends earlier once the loss has not fallen by a hundredth for `patience` epochs.
    dtype: "fp32", or "bf16" by torch.autocast.
    samples: how many of the images to use, of 1797; a fifth of them is held out.
    seed: of the parameters, the order of the batches and the distortion. The split has a seed of its own.
    compare: trains the same model of torch.nn's own modules beside it.
    """

    inputs: str = "patches"
    patch: str = "4x4"
    vocabulary: int = 1000
    width: int = 512
    heads: int = 8
    classes: int = 10
    layers: int = 1
    hidden: int = 512
    activation: str = "relu"
    gate: str = "input"
    head: str = "concat"
    dropout: float = 0.0
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.93
    batch: int = 32
    distortion: float = 1.0
    epochs: int = 100
    patience: int = 10
    dtype: str = "fp32"
    samples: int = 1797
    seed: int = 0
    split_seed: int = 0
    compare: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("inputs", INPUTS), ("patch", PATCHES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"[train] {name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("vocabulary", "width", "heads", "layers", "hidden", "batch", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"[train] {name} is {getattr(self, name)}: expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"[train] heads is {self.heads}: expected a divisor of width, which is {self.width}")
        if self.classes < 10:
            raise ValueError(f"[train] classes is {self.classes}: expected at least 10, there are ten digits")
        if self.inputs == "pixels" and self.vocabulary < 17:
            raise ValueError(f"[train] vocabulary is {self.vocabulary}: expected at least 17, the pixels' intensities")
        if not 10 <= self.samples <= 1797:
            raise ValueError(f"[train] samples is {self.samples}: expected 10 to 1797")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"[train] dropout is {self.dropout}: expected 0 or more, below 1")
        for name in ("seed", "split_seed"):
            check_seed("train", name, getattr(self, name))
        rate, distortion = self.learning_rate, self.distortion
        if not (0 < rate < math.inf and 0 < self.decay <= 1 and self.warmup >= 0 and 0 <= distortion < math.inf):
            raise ValueError(
                "[train] expected learning_rate > 0, 0 < decay <= 1, warmup >= 0 and distortion >= 0, none infinite, "
                f"got {rate}, {self.decay}, {self.warmup} and {distortion}"
            )

    def differences(self, other: "TrainingOptions") -> list[str]:
        """Names of the options that make `other` another run; the number of epochs does not."""
        names = [field.name for field in fields(self) if field.name != "epochs"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def check_seed(op: str, name: str, seed: int) -> None:
    """Raises ValueError for what no torch.Generator takes."""
    if not LEAST_SEED <= seed <= MOST_SEED:
        raise ValueError(f"[{op}] {name} is {seed}: expected {LEAST_SEED} to {MOST_SEED}")
