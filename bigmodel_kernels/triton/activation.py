"""Activations and their derivatives in fp32, each formula once.

gelu is x Phi(x) with the normal distribution Phi, gelu_tanh its approximation by tanh (Hendrycks and Gimpel, 2016);
silu is x sigmoid(x) (Elfwing et al., 2017). "sigmoid" is the function of an input gate.
"""

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
# gelu_tanh(x) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3), for (1 + tanh u) / 2 is sigmoid(2 u).
_LINEAR = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
_CUBIC = tl.constexpr(1.5957691216057308 * 0.044715)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # keeps a NaN, as torch does
    elif ACTIVATION == "gelu":
        x = x * (0.5 + 0.5 * tl.erf(x * _SQRT_HALF))
    elif ACTIVATION == "gelu_tanh":
        x = x * sigmoid(x * (_LINEAR + _CUBIC * x * x))
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    else:
        tl.static_assert(ACTIVATION == "none")
    return x


@triton.jit
def value_and_slope(x, ACTIVATION: tl.constexpr):
    """The activation and its derivative: the expensive part of both is the same."""
    if ACTIVATION == "relu":
        value = tl.where(x < 0.0, 0.0, x)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        below = 0.5 + 0.5 * tl.erf(x * _SQRT_HALF)
        value = x * below
        # x times a density that has underflowed is 0, even at infinity.
        slope = below + tl.where(tl.abs(x) > 15.0, 0.0, x * (_DENSITY_AT_ZERO * tl.exp(-0.5 * x * x)))
    elif ACTIVATION == "gelu_tanh":
        # Beyond 15 the sigmoid is 0 or 1 and its slope 0; a bound keeps x^3 times 0 from being NaN.
        bounded = tl.minimum(tl.maximum(x, -15.0), 15.0)
        square = bounded * bounded
        share = sigmoid(bounded * (_LINEAR + _CUBIC * square))
        value = x * share
        slope = share + bounded * (_LINEAR + 3.0 * _CUBIC * square) * share * (1.0 - share)
    elif ACTIVATION == "silu":
        share = sigmoid(x)
        value = x * share
        slope = share + value * (1.0 - share)
    elif ACTIVATION == "sigmoid":
        value = sigmoid(x)
        slope = value * (1.0 - value)
    else:
        tl.static_assert(ACTIVATION == "none")
        value = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    return value, slope
