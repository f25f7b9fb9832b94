"""`bigmodel train`: a SequenceClassifier on real handwritten digits."""

from .options import TrainingOptions
from .trainer import OURS, TORCH, Epoch, Stopped, Trainer

__all__ = ["OURS", "TORCH", "Epoch", "Stopped", "Trainer", "TrainingOptions"]
