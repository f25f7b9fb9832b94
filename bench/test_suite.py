"""The quick suite under pytest-benchmark: `make bench`, or `pytest bench -k "attention and fp32"`.

Contenders of a row form a group. pytest-benchmark takes one contender after the other; `bigmodel bench` interleaves
them, and is what to quote.
"""

import pytest
import torch
from bigmodel_bench.run import rotating_calls
from bigmodel_bench.suite import select

CASES = [
    pytest.param(case, name, id=f"{' '.join(case.key)}-{name}")
    for case in select(quick=True)
    for name in case.contenders
]


@pytest.mark.parametrize(("case", "contender"), CASES)
def test_speed(case, contender, benchmark):
    benchmark.group = " ".join(case.key)
    calls = rotating_calls(case, torch.Generator().manual_seed(0))
    turns = iter(range(1 << 62))
    benchmark(lambda: calls[contender](next(turns)))
