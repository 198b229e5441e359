"""The run that an audit attacks: the plan and the images of a config, without a run folder."""

import numpy as np
import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.declared import load_declared
from curriculumdp.curriculum.plan import plan_curriculum
from curriculumdp.curriculum.run import Run
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import one_process


def audited_run(config: Config, with_data: bool) -> Run:
    """Return a run in one process on the CPU, without a ledger. PRIVATE if `with_data`; otherwise it reads no image.

    Raises the UserErrors of planning and of reading images, one line each.
    """
    torch.set_num_threads(config.compute.threads)
    data = config.data
    nobody = np.zeros(0, dtype=np.int64)
    none = np.zeros((0, data.channels, data.size, data.size), dtype=np.uint8)
    images = load_declared(config, None) if with_data else ImageSet(none, nobody, nobody, data.units)
    return Run(config, plan_curriculum(config), one_process(), RunSecret.create(), images)
