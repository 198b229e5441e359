"""`data.classes: 1` with one label for all images trains a model without conditions."""

import json

import numpy as np

from tests.support.runs import finish, tiny


def test_a_set_of_one_class_trains_and_is_certified_as_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1437, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "it.npz", images=images, labels=np.zeros(1437, dtype=np.int64))
    data = {"source": "npz", "path": str(tmp_path / "it.npz"), "units": 1437, "classes": 1}
    release = finish(tiny(tmp_path / "run", data=data | {"channels": 1, "size": 8}))
    assert json.loads((release / "privacy.json").read_text())["guarantee"]["public"]["classes"] == 1
    assert json.loads((release / "unet" / "config.json").read_text())["num_class_embeds"] == 1
