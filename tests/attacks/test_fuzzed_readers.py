"""Files of every reader with spoilt bytes are read or refused in one line, whatever library takes them apart."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from curriculumdp.data.images import DataError
from curriculumdp.data.sources import load_images
from tests.attacks.test_hostile_images import spoilt
from tests.data import test_dicom, test_medmnist, test_parquet, test_tars
from tests.support.tried import TRIED

SEED = 11
# How each is made in a folder; the file to spoil, and what to ask for.
MADE: dict[str, Callable[[Path], tuple[Path, dict[str, object]]]] = {
    "tar": lambda folder: (
        test_tars.tar(folder / "a.tar", *test_tars.THREE, *test_tars.sample("j", 4, 1, x=1)),
        {"source": "tar", "path": str(folder / "a.tar"), "classes": 2, "units": 4},
    ),
    "medmnist": lambda folder: (
        test_medmnist.made(folder),
        {"source": "medmnist", "path": str(folder / "medmnist.npz"), "classes": 3, "units": 6},
    ),
    "dicom": lambda folder: (
        test_dicom.made(folder / "a" / "1.dcm", RescaleSlope="2"),
        {"source": "dicom", "path": str(folder), "classes": 1, "units": 1, "window": (0, 4000)},
    ),
    "parquet": lambda folder: (
        test_parquet.parquet(folder / "a.parquet", unit=["0", "1", "2"]),
        {"source": "parquet", "path": str(folder / "a.parquet"), "classes": 2, "units": 3},
    ),
    "arrow": lambda folder: (
        test_parquet.saved(folder) / "data-00000-of-00001.arrow",
        {"source": "parquet", "path": str(folder), "classes": 2, "units": 3},
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MADE)
def test_a_spoilt_file_is_read_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path, asked = MADE[kind](tmp_path)
    whole, rng = path.read_bytes(), random.Random(SEED)
    for _ in range(150):
        path.write_bytes(spoilt(whole, rng))
        TRIED["attacks fuzzed readers"] += 1
        try:
            load_images(**({"channels": 1, "size": 8} | asked))  # type: ignore[arg-type]
        except DataError as error:
            refused = str(error)
        else:
            refused = ""
        assert "\n" not in refused
        assert len(refused) < 1500
