"""What the tests of attention_decode do alike with a case: op_check.py does it for ops that write to no input."""

from functools import cache

import torch
from op_check import device_of, moved

from bigmodel_kernels.testing import FORWARD, AttentionDecodeCase, assert_as_exact
from bigmodel_kernels.testing.decode_cases import CACHES


@cache
def expected(case: AttentionDecodeCase, dtype: torch.dtype) -> tuple[dict, dict]:
    """(truth, reference in dtype)."""
    inputs = case.inputs(dtype)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    return case.run(wide, "reference"), case.run(inputs, "reference")


def check_case(case: AttentionDecodeCase, dtype: torch.dtype, backend: str) -> None:
    """Output and lse are as near the truth as the tolerance rule asks, the caches just as the reference leaves them."""
    inputs = {name: moved(x, device_of(backend)) for name, x in case.inputs(dtype).items()}
    results = {name: x.cpu() for name, x in case.run(inputs, backend).items()}
    truth, reference = expected(case, dtype)
    for name in ("output", "lse"):
        assert_as_exact(name, results[name], reference[name], truth[name], FORWARD, dtype)
    for name in CACHES:
        if name in results:
            torch.testing.assert_close(results[name], reference[name], rtol=0, atol=0, equal_nan=True)
