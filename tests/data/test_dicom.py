"""DICOM: values by slope, intercept and window, the patient as the unit; what is not understood is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.data import dicom
from curriculumdp.data.images import DataError, ImageSet
from curriculumdp.data.sources import load_images

VALUES = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60


def made(path: Path, values: np.ndarray = VALUES, patient: str = "0", **fields: Any) -> Path:
    pydicom = pytest.importorskip("pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.dataset.FileDataset(str(path), {}, preamble=bytes(128))
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    bits = 8 * values.itemsize
    usual = {
        "PatientID": patient, "Rows": values.shape[-2], "Columns": values.shape[-1], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    }  # fmt: skip
    for name, value in (usual | fields).items():
        if value is not None:
            setattr(header, name, value)
    header.PixelData = values.tobytes()
    header.save_as(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["a/1.dcm", "a/2", "b/3.IMA"]):
        made(tmp_path / "scans" / name, VALUES + number, patient=str(number // 2))
    return tmp_path / "scans"


def load(folder: Path, **asked: Any) -> ImageSet:
    settings = {"classes": 2, "channels": 1, "size": 8, "units": 2, "window": (0, 4095)} | asked
    return load_images(source="dicom", path=str(folder), unit="all scans of one patient", **settings)


def complaint(folder: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, **asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def read(path: Path, window: tuple[float, float] = (0, 4095)) -> list[int]:
    how = dicom.Conversion(1, 8, window)
    return dicom.dicom_pixels(pytest.importorskip("pydicom"), path, how).pixels[0, 0].tolist()


def test_scans_are_labelled_by_folder_and_owned_by_their_patient(folder: Path) -> None:
    images = load(folder)
    assert (images.labels.tolist(), images.units.tolist()) == ([0, 0, 1], [0, 0, 1])
    assert np.array_equal(images.images[1, 0], np.rint((VALUES + 1) * (255 / 4095)))


def test_patients_with_names_are_found_in_the_roster(tmp_path: Path) -> None:
    for number, patient in enumerate(["ward^7", "ward^2", "ward^7"]):
        made(tmp_path / "scans" / "ab"[number // 2] / f"{number}.dcm", patient=patient)
    roster = tmp_path / "roster.txt"
    roster.write_text("ward^2\nward^7\n")
    assert load(tmp_path / "scans", roster=str(roster)).units.tolist() == [1, 0, 1]
    assert "data.roster" in complaint(tmp_path / "scans")


def test_a_tables_units_replace_patient_ids(folder: Path, tmp_path: Path) -> None:
    made(folder / "a" / "1.dcm", patient="")
    (tmp_path / "table.csv").write_text("path,label,unit\na/1.dcm,1,0\na/2,0,1\n")
    assert load(folder, csv=str(tmp_path / "table.csv")).units.tolist() == [0, 1]
    assert "names no patient" in complaint(folder)


def test_slope_and_intercept_come_before_the_window(tmp_path: Path) -> None:
    values = np.array([[0, 924, 1024, 2024]], dtype=np.uint16).repeat(8, 0).repeat(2, 1)
    path = made(tmp_path / "a.dcm", values, RescaleSlope="1", RescaleIntercept="-1024")
    assert read(path, (-100, 1000))[::2] == [0, 0, 23, 255]


def test_signed_values_keep_their_sign(tmp_path: Path) -> None:
    assert read(made(tmp_path / "a.dcm", np.full((8, 8), -500, dtype=np.int16)), (-1000, 0))[0] == 128


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_8_12_and_16_bits_are_read(tmp_path: Path, bits: int, kind: type) -> None:
    top = 2**bits - 1
    path = made(tmp_path / "a.dcm", np.full((8, 8), top, dtype=kind), BitsStored=bits, HighBit=bits - 1)
    assert read(path, (0, top)) == [255] * 8


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read(made(tmp_path / "a.dcm"))
    inverted = read(made(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert inverted == [255 - value for value in plain]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"NumberOfFrames": 2}, "several frames"),
        ({"PhotometricInterpretation": "RGB"}, "is RGB, but only grey"),
        ({"PhotometricInterpretation": None}, "is None, but only grey"),
        ({"SamplesPerPixel": 3}, "only grey"),
        ({"Rows": 60_000, "Columns": 60_000}, "too many"),
        ({"Rows": 0}, "too many or none"),
        ({"Rows": 8000, "Columns": 8000}, "more pixels than it holds"),
        ({"Rows": 9}, "is damaged"),
        ({"BitsAllocated": None}, "is damaged"),
        ({"Rows": None}, "is damaged"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "not finite"),
    ],
)
def test_a_scan_that_is_not_understood_is_refused_by_name(
    folder: Path, fields: dict[str, Any], part: str
) -> None:
    path = made(folder / "a" / "1.dcm", **fields)
    message = complaint(folder)
    assert part in message
    assert str(path) in message


def test_a_lookup_table_of_values_is_refused(folder: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    made(folder / "a" / "1.dcm", ModalityLUTSequence=pydicom.sequence.Sequence([pydicom.dataset.Dataset()]))
    assert "modality LUT" in complaint(folder)


def test_a_deflated_file_is_refused_before_it_is_unpacked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pydicom = pytest.importorskip("pydicom")
    content = (folder / "a" / "2").read_bytes()
    content = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99\0\0"[:20])
    path = folder / "a" / "2"
    path.write_bytes(content)
    header = pydicom.dataset.FileMetaDataset()
    header.TransferSyntaxUID = dicom.DEFLATED
    monkeypatch.setattr(pydicom.filereader, "read_file_meta_info", lambda _: header)
    assert "deflated" in complaint(folder)


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 50]
)
def test_what_is_no_dicom_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "a" / "2").write_bytes(content)
    assert f"{folder / 'a' / '2'}: " in complaint(folder)


def test_a_missing_window_is_named_before_anything_is_read(tmp_path: Path) -> None:
    from curriculumdp.config.config import load_config
    from curriculumdp.config.yaml_file import ConfigError

    config = Path(__file__).parents[2] / "configs" / "mnist_eps1.yaml"
    with pytest.raises(ConfigError, match="window is missing"):
        load_config(config, ["data.source=dicom"])


def test_without_pydicom_the_fix_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert "pip install 'curriculumdp[dicom]'" in complaint(tmp_path)
