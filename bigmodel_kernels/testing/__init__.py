"""What tests and benchmarks share: the cases an op must handle (cases) and how wrong it may be (tolerance)."""

from .cases import (
    ADD_NORM_CASES,
    ATTENTION_CASES,
    ATTENTION_WEIGHTS_CASES,
    FEED_FORWARD_CASES,
    LINEAR_CASES,
    AddNormCase,
    AttentionCase,
    AttentionWeightsCase,
    FeedForwardCase,
    LinearCase,
)
from .decode_cases import ATTENTION_DECODE_CASES, AttentionDecodeCase
from .language_cases import LINEAR_CROSS_ENTROPY_CASES, ROTARY_CASES, LinearCrossEntropyCase, RotaryCase
from .tolerance import FORWARD, GRADIENT, assert_as_exact, max_error, relative_error
from .varlen_cases import ATTENTION_VARLEN_CASES, AttentionVarlenCase

# By op.
CASES = {
    "attention": ATTENTION_CASES,
    "attention_decode": ATTENTION_DECODE_CASES,
    "attention_varlen": ATTENTION_VARLEN_CASES,
    "attention_weights": ATTENTION_WEIGHTS_CASES,
    "linear": LINEAR_CASES,
    "feed_forward": FEED_FORWARD_CASES,
    "add_norm": ADD_NORM_CASES,
    "rotary": ROTARY_CASES,
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY_CASES,
}

__all__ = [
    "ADD_NORM_CASES",
    "ATTENTION_CASES",
    "ATTENTION_DECODE_CASES",
    "ATTENTION_VARLEN_CASES",
    "ATTENTION_WEIGHTS_CASES",
    "CASES",
    "FEED_FORWARD_CASES",
    "FORWARD",
    "GRADIENT",
    "LINEAR_CASES",
    "LINEAR_CROSS_ENTROPY_CASES",
    "ROTARY_CASES",
    "AddNormCase",
    "AttentionCase",
    "AttentionDecodeCase",
    "AttentionVarlenCase",
    "AttentionWeightsCase",
    "FeedForwardCase",
    "LinearCase",
    "LinearCrossEntropyCase",
    "RotaryCase",
    "assert_as_exact",
    "max_error",
    "relative_error",
]
