"""Labels and owners that come with each image as a record: of metadata.jsonl, of a tar's JSON, of a table's row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from curriculumdp.data.images import DataError

LABEL, UNIT = "label", "unit"


class Records:
    """PRIVATE: labels and units in the order in which they are added; `unused` are the keys that are neither."""

    def __init__(self) -> None:
        self._labels: list[int | str] = []
        self._units: list[str | None] = []
        self.unused: dict[str, None] = {}

    def add(self, record: Mapping[str, Any], where: str) -> None:
        """Add an image's record {label: int or text, unit: int or text}. Raises DataError, which names `where`."""
        label, unit = record.get(LABEL), record.get(UNIT)
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise DataError(
                f"{where}: the label is {str(label)[:40]!r} but must be 0, 1, 2, ... or a class's name"
            )
        if isinstance(label, int) and not 0 <= label < 2**63:
            raise DataError(f"{where}: the label is {str(label)[:40]} but must be one of 0, 1, 2, ...")
        if UNIT in record and (
            isinstance(unit, bool) or not isinstance(unit, int | str) or not str(unit).strip()
        ):
            raise DataError(f"{where}: the unit is {str(unit)[:40]!r}: name the owner of every image")
        self._labels.append(label)
        self._units.append(str(unit).strip() if UNIT in record else None)
        self.unused |= dict.fromkeys(str(key)[:40] for key in record.keys() - {LABEL, UNIT})

    def labels(self, origin: str, classes: int) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Return the labels, int64 [N], and the classes' names in the order of their numbers, where they are names.

        Raises DataError where names and numbers are mixed, or where there are not as many names as `classes`: a class
        without images would otherwise renumber the ones after it.
        """
        named = [isinstance(label, str) for label in self._labels]
        if not any(named):
            return np.array(self._labels, dtype=np.int64), None
        if not all(named):
            raise DataError(f"{origin}: some labels are numbers and some are names: use one kind")
        names = sorted({str(label) for label in self._labels})
        if len(names) != classes:
            raise DataError(
                f"{origin}: the labels name {len(names)} classes but data.classes = {classes}: correct it, or write "
                "labels as numbers if some class has no image"
            )
        number = {name: index for index, name in enumerate(names)}
        return np.array([number[str(label)] for label in self._labels], dtype=np.int64), tuple(names)

    def units(self, origin: str) -> list[str] | None:
        """Return the units, None if no record has one. Raises DataError if only some have."""
        units = [unit for unit in self._units if unit is not None]
        if units and len(units) != len(self._units):
            raise DataError(
                f"{origin}: some images name their unit and some do not: name the owner of every image"
            )
        return units or None

    def notes(self, origin: str) -> tuple[str, ...]:
        """Return the line that tells the user what is not used, if anything is."""
        unused = ", ".join(map(repr, sorted(self.unused)))
        return (f"{origin}: not used: {unused}",) if unused else ()
