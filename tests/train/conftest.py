"""Training tests: one thread, so that sums come in one order and a child can be forked safely."""

import torch

torch.set_num_threads(1)
