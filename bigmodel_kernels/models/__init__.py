"""Whole Transformers made of bigmodel_kernels.nn."""

from bigmodel_kernels.models.causal_lm import CausalLM, CausalLMConfig
from bigmodel_kernels.models.sequence_classifier import SequenceClassifier

__all__ = ["CausalLM", "CausalLMConfig", "SequenceClassifier"]
