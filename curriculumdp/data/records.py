"""Labels and owners that come with each image as a record: of metadata.jsonl, of a tar's JSON, of a table's row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.names import by_name, labels_of_table

LABEL, UNIT = "label", "unit"
ROW_NUMBER = "__index_level_"  # how pandas names it in parquet files


class Records:
    """PRIVATE: labels and units in the order in which they are added; `unused` are the keys that are neither."""

    def __init__(self) -> None:
        self._labels: list[int | str] = []
        self._units: list[str | None] = []
        self._places: list[str] = []
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
        self._places.append(where)
        self._units.append(str(unit).strip() if UNIT in record else None)
        self.unused |= dict.fromkeys(str(key)[:40] for key in record.keys() - {LABEL, UNIT})

    def labels(
        self, origin: str, classes: int, declared: Sequence[str] | None, names: Sequence[str] | None = None
    ) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Return (labels int64 [N], the classes' names in label order, None for numbers that nobody named).

        names: where the source itself names the classes of its numbers. Names follow `declared`, else their natural
        order. Raises DataError where names and numbers are mixed, or the names are not those that are declared.
        """
        named = [isinstance(label, str) for label in self._labels]
        if not any(named):
            labels = np.array(self._labels, dtype=np.int64)
            if names is not None:
                return by_name(labels, names, declared, classes, origin)
            return labels, None if declared is None else tuple(declared)
        if not all(named):
            raise DataError(f"{origin}: some labels are numbers and some are names: use one kind")
        found, known = labels_of_table(
            [str(label) for label in self._labels], self._places, declared, classes, origin
        )
        return np.array(found, dtype=np.int64), known

    def units(self, origin: str) -> list[str] | None:
        """Return the units, None if no record has one.

        Raises DataError if only some have, and where none has but a key is unused: it may be the owner under another
        name, and without owners each image would silently be its own unit.
        """
        units = [unit for unit in self._units if unit is not None]
        owners = sorted(key for key in self.unused if key and not key.startswith(ROW_NUMBER))
        if not units and owners:
            raise DataError(
                f"{origin}: has {', '.join(map(repr, owners))} beside the label, but no unit: rename the one that "
                "names each image's owner to unit, or remove them"
            )
        if units and len(units) != len(self._units):
            raise DataError(
                f"{origin}: some images name their unit and some do not: name the owner of every image"
            )
        return units or None

    def notes(self, origin: str) -> tuple[str, ...]:
        """Return the line that tells the user what is not used, if anything is."""
        unused = ", ".join(map(repr, sorted(self.unused)))
        return (f"{origin}: not used: {unused}",) if unused else ()
