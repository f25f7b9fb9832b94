"""Whether Triton runs its kernels in numpy, for those who ask without importing Triton."""

import os


def interpreted() -> bool:
    """TRITON_INTERPRET, as triton.knobs.runtime.interpret reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
