"""The table of known answers."""

from .answers_of_floats import APPROXIMATE, APPROXIMATE_SPECIAL, CONVERT, FLOAT, HALF
from .answers_of_integers import BITS, COMPARE, INTEGER, MOVE

EXACT = [*INTEGER, *BITS, *FLOAT, *HALF, *COMPARE, *MOVE, *CONVERT]

__all__ = ["APPROXIMATE", "APPROXIMATE_SPECIAL", "EXACT"]
