"""Reader for DICOM files of one grey frame each, through pydicom (an optional package).

A stored value becomes rescale slope · value + intercept (hounsfield units in CT), then grey by data.window; MONOCHROME1
is inverted. The unit is the patient ID unless a table names units. What is not understood is refused by name.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from curriculumdp.data.folders import labelled_files
from curriculumdp.data.images import BadImage, DataError
from curriculumdp.data.listing import Listing, Wanted
from curriculumdp.data.pictures import MAX_PIXELS
from curriculumdp.data.pixels import Conversion, Decoded, Unusable, fitted, windowed

SUFFIXES = {".dcm", ".dicom", ".ima", ""}
DEFLATED = "1.2.840.10008.1.2.1.99"  # unpacks to any size before its header can be read
GREYS = ("MONOCHROME1", "MONOCHROME2")


def list_dicom(wanted: Wanted) -> Listing:
    """List a folder of DICOM files, labelled by sub-folder or by data.csv. Reads every file's header."""
    pydicom = _pydicom()
    listed = labelled_files(wanted, SUFFIXES)
    files = listed.files
    units = listed.units or [_patient(pydicom, file) for file in files]
    return Listing(
        listed.origin,
        np.array(listed.labels, dtype=np.int64),
        units,
        (*listed.also, *files),
        lambda: lambda row: dicom_pixels(pydicom, files[row], wanted.how),
        listed.class_names,
        listed.notes,
    )


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise DataError(
            "data.source is 'dicom', which needs pydicom: run pip install 'curriculumdp[dicom]'"
        ) from None
    return pydicom


def _patient(pydicom: ModuleType, file: Path) -> str:
    header = _header(pydicom, file, stop_before_pixels=True, specific_tags=["PatientID"])
    try:
        patient = str(header.get("PatientID") or "").strip()
    except Exception as error:  # elements are parsed when they are first asked for
        raise BadImage(str(file), f"cannot be read as DICOM ({_short(error)}): fix or remove it") from None
    if not patient:
        raise DataError(
            f"{file}: names no patient (PatientID): name every image's owner in data.csv, column unit"
        )
    return patient


def _header(pydicom: ModuleType, file: Path, **asked: Any) -> Any:
    try:
        if getattr(pydicom.filereader.read_file_meta_info(file), "TransferSyntaxUID", None) == DEFLATED:
            raise Unusable("is a deflated DICOM file: save it uncompressed")
        return pydicom.dcmread(file, **asked)
    except Unusable as error:
        raise BadImage(str(file), str(error)) from None
    except Exception as error:  # on damaged files the parser raises anything
        raise BadImage(str(file), f"cannot be read as DICOM ({_short(error)}): fix or remove it") from None


def dicom_pixels(pydicom: ModuleType, file: Path, how: Conversion) -> Decoded:
    """Return the image in a DICOM file. Raises DataError that names the file."""
    # Elements are deferred, so that the header is checked before the pixels are in memory.
    header = _header(pydicom, file, defer_size=2**16)
    try:
        _refuse_from_header(header, file.stat().st_size)
        stored = np.asarray(header.pixel_array)
        slope, intercept = (
            float(header.get(name, default))
            for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        with np.errstate(over="ignore", invalid="ignore"):
            grey = windowed(stored * slope + intercept, how.window)
        if header.PhotometricInterpretation == "MONOCHROME1":
            grey = 255 - grey
        return fitted(Image.fromarray(grey), how)
    except Unusable as error:
        raise BadImage(str(file), str(error)) from None
    except Exception as error:
        raise DataError(
            f"{file}: is damaged or packed in an unknown way ({_short(error)}): convert it"
        ) from None


def _refuse_from_header(header: Any, length: int) -> None:
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise Unusable("has several frames: save the one to use as its own file")
    kind = header.get("PhotometricInterpretation")
    if kind not in GREYS or int(header.get("SamplesPerPixel", 1)) != 1:
        raise Unusable(
            f"is {str(kind)[:40]}, but only grey ({', '.join(GREYS)}) is read: convert it to an image file"
        )
    if "ModalityLUTSequence" in header:
        raise Unusable("maps its values by a table (modality LUT): apply it and save the file anew")
    height, width = int(header.Rows), int(header.Columns)
    if not 0 < height * width <= MAX_PIXELS:
        raise Unusable(f"{width}x{height} pixels are too many or none (at most {MAX_PIXELS}): scale it down")
    if (
        not header.file_meta.TransferSyntaxUID.is_compressed
        and height * width * header.BitsAllocated > 8 * length
    ):
        raise Unusable("declares more pixels than it holds: replace the file")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
