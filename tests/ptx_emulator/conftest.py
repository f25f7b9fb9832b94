"""What one test leaves in the emulator must not reach the next."""

import pytest

from tests.ptx_emulator import Emulator, library


@pytest.fixture(autouse=True)
def clean_emulator():
    emulator = Emulator()
    emulator.hazards(), emulator.counters(), emulator.calls()
    library().cudaGetLastError()
    yield
    emulator.device()
