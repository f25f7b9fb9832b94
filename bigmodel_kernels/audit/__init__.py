"""`bigmodel audit`: what the machine code of the GPU kernels says about their speed, without a GPU.

Nothing here is measured: every figure is read from the compiler's output or follows from it by arithmetic, and is
called predicted wherever it is shown.
"""

from .rows import ARCHITECTURES, BACKENDS, DTYPES, OPS, Row, audit, cases, reasons

__all__ = ["ARCHITECTURES", "BACKENDS", "DTYPES", "OPS", "Row", "audit", "cases", "reasons"]
