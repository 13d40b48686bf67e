import sys

import pytest
import torch

from ahm_gym.benchmark.memory import peak_memory_mib, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux's /proc")
def test_the_peak_is_measured_from_the_reset_on():
    reset_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    held = torch.ones(64, 2**20)  # 256 MiB
    assert peak_memory_mib(CPU) - before > 200
    del held
    assert peak_memory_mib(CPU) - before > 200
    reset_peak_memory(CPU)
    assert peak_memory_mib(CPU) - before < 100
