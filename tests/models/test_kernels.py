"""Runs ``kernel_cases.py`` in a process of its own: on the GPU, else in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("kernel_cases.py")


@pytest.mark.slow
def test_kernels_are_the_terms() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton (extra dev, on Linux)")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if not torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-x"]
    done = subprocess.run([*command, str(CASES)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_on_a_cpu_no_kernel_is_loaded() -> None:
    code = """
import sys, torch
from sddlm.models.row_losses import CrossEntropy
from sddlm.models.vocab_head import VocabHead
VocabHead(4, 7)(torch.randn(3, 4), CrossEntropy(torch.zeros(3, dtype=torch.int64))).total.backward()
print([name for name in sys.modules if "row_kernels" in name])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
