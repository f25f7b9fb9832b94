"""Which of the two GPU backends automatic choice takes where both can run a call: one table, by architecture, op and
size. A row that no device has measured says so."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`backend` for these ops (None: all) on compute capabilities `first` to `last`, where the call's first tensor has
    at most `most_elements` (None: any number)."""

    backend: str
    ops: tuple[str, ...] | None
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (99, 9)
    most_elements: int | None = None
    measured: bool = False
    why: str = ""


# The first row that fits decides; the last fits everything.
TABLE = (
    Row("cuda", None, most_elements=1 << 16, why="the host starts a CUDA kernel sooner than a Triton one"),
    Row(
        "triton",
        ("attention", "attention_varlen", "linear", "feed_forward", "linear_cross_entropy"),
        first=(9, 0),
        last=(10, 9),
        why="Triton's products use these architectures' asynchronous tensor cores, the CUDA kernels mma.sync",
    ),
    Row("triton", ("attention_weights",), why="its CUDA kernels multiply without tensor cores"),
    Row("cuda", None, why="kernels made for mma.sync"),
)


def choose(op: str, capability: tuple[int, int], elements: int | None) -> Row:
    """The row for a call; `elements` of its first tensor, None if unknown, which counts as many."""
    for row in TABLE:
        small = row.most_elements is None or (elements is not None and elements <= row.most_elements)
        if (row.ops is None or op in row.ops) and row.first <= capability <= row.last and small:
            return row
    raise AssertionError(f"no row of gpu_choice.TABLE fits {op}")
