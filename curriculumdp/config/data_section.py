"""The options of the sensitive set: section `data` of a config. PUBLIC, as everything that a config says."""

from typing import Annotated, Literal

from pydantic import Field

from curriculumdp.config.values import (
    NEUTRAL,
    Background,
    Count,
    DataName,
    Float,
    Int,
    Line,
    PathName,
    Section,
)


class DataConfig(Section):
    """The sensitive set. Its declared shape and counts are public, and the data must match them exactly."""

    source: Literal["digits", "idx", "npz", "medmnist", "image_folder", "dicom", "parquet", "tar"] = Field(
        description="the reader; parquet also reads Hugging Face's saved sets, tar WebDataset's"
    )
    path: PathName | None = Field(
        default=None, description="the data's folder or file", json_schema_extra=NEUTRAL
    )
    split: Annotated[Line, Field(max_length=100)] | None = Field(
        default=None, description="which split of medmnist or parquet to train on (default: train)"
    )
    csv: PathName | None = Field(
        default=None,
        description="CSV file that lists the images of image_folder or dicom, with the columns path,label[,unit]",
        json_schema_extra=NEUTRAL,
    )
    roster: PathName | None = Field(
        default=None,
        description="public file of all unit ids, one per line: line i is unit i",
        json_schema_extra=NEUTRAL,
    )
    units: Count = Field(description="number of units: people, or images where no units are given")
    unit: Annotated[Line, Field(max_length=200)] = Field(
        "one image",
        description="what a unit is, as the certificate states it, e.g. 'all images of one patient'",
    )
    classes: Count = Field(description="number of classes; labels are 0..classes-1")
    class_names: tuple[Annotated[Line, Field(max_length=100)], ...] | None = Field(
        default=None,
        description="PUBLIC names of the classes, in label order (default: those found, in natural order)",
    )
    channels: Literal[1, 3] = Field(description="1 for grey, 3 for RGB")
    size: Annotated[Int, Field(ge=4, le=1024)] = Field(
        description="height and width of the model's images, in pixels"
    )
    class_counts: tuple[Annotated[Int, Field(ge=0, le=10**12)], ...] | None = Field(
        default=None, description="units per class; give them only if they are public"
    )
    flip: bool = Field(
        default=False, description="mirror draws by chance: set it only if a mirrored image keeps its label"
    )
    shift: Annotated[Int, Field(ge=0)] = Field(
        default=0, description="max pixels, each way, by which a draw is moved: only if its label stays true"
    )
    window: tuple[Float, Float] | None = Field(
        default=None, description="[low, high]: values of deeper images that become black and white"
    )
    fit: Literal["crop", "pad", "stretch"] = Field(
        default="crop", description="rectangles: crop to the centre square, pad with background, or stretch"
    )
    background: Background | None = Field(
        default=None, description="0..255 or [red, green, blue]: what transparency and padding show"
    )
    to_grey: bool = Field(
        default=False, description="with channels 1, train on the luminance of images in colour"
    )
    name: DataName | None = Field(
        default=None, description="name of the data set, whose own ledger composes all runs on it"
    )
    ledger: str | None = Field(  # `~` stays refused: from another home it would be another ledger
        default=None,
        description="absolute path of that ledger's folder (default: the user's state folder)",
        json_schema_extra=NEUTRAL,
    )
    budget: Annotated[Float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="max ε of all runs on the named data set together; launch/budget.py creates its ledger",
    )
