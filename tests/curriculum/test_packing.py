"""Under the same keys another microbatch size gives the same un-noised sum of the real step (design, section 7.2)."""

import numpy as np
import pytest
import torch

from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.world import World

ROWS = np.array([1, 3, 5, 7, 8, 11, 12, 20, 21, 30, 31], dtype=np.int64)


@pytest.mark.parametrize("draws", [1, 3])
def test_another_microbatch_size_gives_the_same_sum_to_a_millionth(make_run, digits, draws):
    sums = []
    for microbatch in (1, 3, 4, 11, 16):
        changes = {"compute__microbatch": microbatch, "private__draws": draws}
        run, state = make_run(digits, World(0, 1, torch.device("cpu")), **changes)
        total, _ = PrivatePhase(run).clipped_sum(run, state, 2, ROWS)
        sums.append(total.double())
    assert sums[0].norm() > 0
    for other in sums[1:]:
        assert (other - sums[0]).norm() <= 1e-6 * sums[0].norm()
