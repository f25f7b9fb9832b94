"""What the tests of measured launches share: a device that there is not, entries of its table, and a clean state."""

import dataclasses

import pytest
import torch

from bigmodel_kernels.triton import attention_launch, choice, launch
from bigmodel_kernels.triton.launch import ProductLaunch
from bigmodel_kernels.tuned_launches import ENVIRONMENT, Identity, Measured

CPU = torch.device("cpu")
IDENTITY = Identity("A GPU (80 GB)", "9.0", "2.13.0", "3.9.0", "0.1.0", "0" * 64)
KEY = ("plain", "half", 64, 64, 64)
ENTRY = Measured(KEY, dataclasses.asdict(ProductLaunch(32, 64, 16, 2, 1)), 1.5, 2.5)
FORWARD = Measured(("forward", "half", 64), dataclasses.asdict(attention_launch.Launch(16, 32, 4, 1)), 1.0, 1.0)


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    """Tables of this test alone, and no choice left behind."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(launch, "_overrides", {})
    monkeypatch.setattr(attention_launch, "_overrides", {})
    source = choice._State.source
    yield
    choice.use_measured(source)
