"""Packed sequences in the attention kernels: which tile of which sequence a program takes, and how one sequence looks
like a call of its own.

Only the device knows the lengths, and the host does not wait for it. A pass launches as many programs as tiles of any
lengths could need, at most one more than that per sequence, and `order_tiles_kernel` writes down beforehand what each
of them takes: longest sequences first, so that no long tile starts when all else is done. Starts that are wrong give
wrong results, but let nothing be read or written outside of the tensors, unless a mask is smaller than a sequence.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .attention_inputs import Band, Features, Inputs, Packed, Sizes, View
from .attention_launch import Call
from .tiles import take


@triton.jit
def _span(starts, sequence, tokens):
    """(first, count) of the tokens of a sequence, or of a tensor of sequences, within the `tokens` that there are."""
    first = tl.minimum(tl.maximum(tl.load(starts + sequence), 0), tokens).to(tl.int32)
    end = tl.minimum(tl.maximum(tl.load(starts + sequence + 1), first), tokens).to(tl.int32)
    return first, end - first


@triton.jit
def order_tiles_kernel(
    rows_starts,
    other_starts,
    rows_in_all,
    others_in_all,
    rows_per_token,
    tiles,
    slots,
    sequences,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the (sequence, tile) of each slot: one program per sequence, and one that writes (-1, .) to those that are
    left over. The work of a tile of rows is the number of the sequence's others; the most of it comes first."""
    own = tl.program_id(0)
    exists = own < sequences
    mine = tl.minimum(own, sequences - 1)
    rows = _span(rows_starts, mine, rows_in_all)[1]
    work = _span(other_starts, mine, others_in_all)[1]
    work = tl.where(exists, work, -1)
    columns = tl.arange(0, CHUNK)
    counts = tl.zeros((CHUNK,), tl.int32)  # of the tiles that come before
    for start in tl.range(0, sequences, CHUNK):
        other = start + columns
        each = tl.minimum(other, sequences - 1)
        other_rows = _span(rows_starts, each, rows_in_all)[1]
        other_work = _span(other_starts, each, others_in_all)[1]
        earlier = (other_work > work) | ((other_work == work) & (other < own))
        counts += tl.where((other < sequences) & earlier, tl.cdiv(other_rows * rows_per_token, BLOCK), 0)
    before = tl.sum(counts, 0)
    end = tl.where(exists, tl.minimum(before + tl.cdiv(rows * rows_per_token, BLOCK), slots), slots)
    for start in tl.range(before, end, CHUNK):
        slot = start + columns
        tl.store(tiles + 2 * slot, tl.where(exists, own, -1), mask=slot < end)
        tl.store(tiles + 2 * slot + 1, slot - before, mask=slot < end)


@triton.jit
def take_tile(packed, heads, section):
    """(sequence, tile, head) of a program, in the order of `take`; a sequence of -1: there is nothing left to take."""
    slot, head = take(tl.program_id(0), packed.slots, heads, section)
    at = packed.tiles + 2 * slot
    return tl.load(at), tl.load(at + 1), head


@triton.jit
def from_row(view, row):
    """A View that begins with a row of another."""
    return View(view.data + tl.cast(row, tl.int64) * view.row, view.batch, view.head, view.row, view.column)


class OfSequence(NamedTuple):
    """What the Inputs of a sequence, as if it were all there is, do not share with those of the call. All that may be
    absent is shared: Triton 3.6 takes no None from a helper. What belongs to a batch, as its mask and slopes, is still
    found by the sequence's number."""

    query: View
    key: View
    value: View
    sizes: Sizes
    band: Band
    packed: Packed


@triton.jit
def of_sequence(inputs, sequence):
    """The OfSequence of one of the packed sequences."""
    packed = inputs.packed
    sizes = inputs.sizes
    band = inputs.band
    first, q_len = _span(packed.query_starts, sequence, packed.queries)
    first_key, kv_len = _span(packed.key_starts, sequence, packed.keys)
    return OfSequence(
        from_row(inputs.query, first),
        from_row(inputs.key, first_key),
        from_row(inputs.value, first_key),
        Sizes(sizes.batch, sizes.heads, sizes.group, q_len, kv_len, sizes.head_dim, sizes.value_dim),
        Band((kv_len - q_len) * packed.aligned, band.before, band.after),
        Packed(
            packed.query_starts,
            packed.key_starts,
            packed.queries,
            packed.keys,
            packed.aligned,
            packed.query_starts,  # for tiles, of which a sequence that is all there is has none
            0,
            first,
            first_key,
        ),
    )


def row_batches(sizes: Sizes, features: Features) -> int:
    """How many batches the rows of queries are apart from those of heads: packed ones are all of one."""
    return 1 if features.packed else sizes.batch


def flat(sizes: Sizes, features: Features) -> Sizes:
    """The sizes of kernels that go through rows one by one, whatever sequence they are of."""
    return sizes._replace(batch=row_batches(sizes, features))


def most_tiles(sizes: Sizes, features: Features, rows: int, block: int) -> int:
    """How many tiles of one head there are, of `rows` of each batch; packed: of all sequences, at most."""
    if features.packed:  # floor(rows / block) + 1 are enough for each, and one for each row
        return min(rows // block + sizes.batch, rows)
    return triton.cdiv(rows, block) * sizes.batch


def ordered(
    inputs: Inputs, features: Features, block: int, group: int = 1, *, keys: bool = False
) -> tuple[Inputs, list[Call]]:
    """The inputs of a pass whose programs take tiles of `block` rows, and what is to run before it. Rows are queries of
    `group` heads, or keys. What is not packed needs neither."""
    if not features.packed:
        return inputs, []
    packed, sequences = inputs.packed, inputs.sizes.batch
    rows, others = (packed.query_starts, packed.queries), (packed.key_starts, packed.keys)
    if keys:
        rows, others = others, rows
    slots = most_tiles(inputs.sizes, features, rows[1] * group, block)
    tiles = rows[0].new_empty(slots, 2, dtype=torch.int32)
    chunk = min(max(triton.next_power_of_2(sequences), 32), 1024)
    arguments = (rows[0], others[0], rows[1], others[1], group, tiles, slots, sequences, block, chunk)
    inputs = inputs._replace(packed=packed._replace(tiles=tiles, slots=slots))
    return inputs, [Call("order_tiles", order_tiles_kernel, (sequences + 1,), arguments)]
