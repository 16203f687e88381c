"""One thread in every process of the tests: sums in another order differ in the last bit."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
