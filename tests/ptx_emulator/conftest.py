"""What one test leaves in the emulator must not reach the next."""

import pytest

from . import Emulator


@pytest.fixture(autouse=True)
def clean_emulator():
    emulator = Emulator()
    emulator.hazards(), emulator.counters()
    yield
    emulator.device()
