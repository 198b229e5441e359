"""The names of classes, in label order, and the one order in which names are listed. PUBLIC.

A class is known by its name, never by its place in a listing: two listings of the same classes in another spelling or
order would otherwise swap them without a word.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.printable import require_line

MAX_LETTERS = 100  # of one name
SHOWN = 12  # names in an error


def natural(name: str) -> tuple[object, ...]:
    """Return a sort key under which numbers in names count as numbers: 2 before 10."""
    parts = re.split("([0-9]+)", name)
    digits = (part.lstrip("0") for part in parts[1::2])
    numbers = [(len(part), part) for part in digits]
    return (*sum(zip(parts[::2], [*numbers, (-1, "")], strict=True), ()), name)


def listed(names: Sequence[str]) -> str:
    """Return names as text for an error, at most SHOWN of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{list(names[:SHOWN])}{more}"


def spelt(name: str, where: str) -> str:
    """Return a name in its one spelling (NFC, no spaces around it). Raises DataError unless it is one short line."""
    one = unicodedata.normalize("NFC", name.strip())
    try:
        require_line(one)
    except ValueError as error:
        raise DataError(f"{where}: class name {name[:40]!r} {error}") from None
    if len(one) > MAX_LETTERS:
        raise DataError(f"{where}: class name {name[:40]!r} has more than {MAX_LETTERS} letters: shorten it")
    return one


def in_label_order(
    found: Sequence[str], declared: Sequence[str] | None, classes: int, where: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return (the names in label order, the label of each of `found`).

    The order is that of `declared`, else of `found`. Raises DataError, with both lists, unless the names are the same.
    """
    names = [spelt(name, where) for name in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: two classes are named {twice!r}: give each class its own name")
    order = tuple(names if declared is None else declared)
    if sorted(names) != sorted(order):
        raise DataError(
            f"{where}: has classes named {listed(names)} but those of the run (data.class_names) are {listed(order)}: "
            "labels go by name, so make the two the same"
        )
    if len(names) != classes:
        raise DataError(f"{where}: names {len(names)} classes {listed(names)} but data.classes = {classes}")
    places = {name: label for label, name in enumerate(order)}
    return order, [places[name] for name in names]


def by_name(
    labels: np.ndarray, found: Sequence[str], declared: Sequence[str] | None, classes: int, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (labels, names) in the order of `declared`, else as they are; found[label] is the name of a class.

    Labels outside the classes are left, to be refused. Raises DataError, with both lists, unless the names agree.
    """
    names, places = in_label_order(found, declared, classes, where)
    known = (labels >= 0) & (labels < len(places))
    return np.where(known, np.array(places)[labels * known], labels), names


def is_number(text: str) -> bool:
    """Return whether a label is 0, 1, 2, ...; int64 holds 18 digits."""
    return text.isascii() and text.isdigit() and len(text) < 19


def like_a_number(text: str) -> bool:
    """Return whether a name could be taken for a label's number; where one is, all labels are names."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def labels_of_table(
    texts: Sequence[str], lines: Sequence[str], declared: Sequence[str] | None, classes: int, where: str
) -> tuple[list[int], tuple[str, ...] | None]:
    """Return (the label of each row, the names in label order or None for numbers that nobody named).

    Labels are names where one of `declared` looks like a number, or where a row does not; otherwise they are numbers,
    which `declared` may name. lines: where each row is, for errors. Raises DataError that names the first bad row.
    """
    texts = [text.strip() for text in texts]
    numbers = all(map(is_number, texts))
    if numbers and not any(map(like_a_number, declared or ())):
        return _numbers_of_table(texts, lines), None if declared is None else tuple(declared)
    names = declared if declared is not None else _names_of_table(texts, lines, classes, where)
    places = {name: label for label, name in enumerate(names)}
    labels = []
    for text, line in zip(texts, lines, strict=True):
        name = unicodedata.normalize("NFC", text)
        if name not in places:
            raise DataError(f"{line}: label {text[:40]!r} is not one of the class names {listed(names)}")
        labels.append(places[name])
    return labels, tuple(names)


def _numbers_of_table(texts: Sequence[str], lines: Sequence[str]) -> list[int]:
    """Return labels that are all numbers. Raises DataError for a number that is written in two ways, as 1 and 01."""
    spellings: dict[int, str] = {}
    for text, line in zip(texts, lines, strict=True):
        known = spellings.setdefault(int(text), text)
        if known != text:
            raise DataError(
                f"{line}: label {text!r} is the same number as {known!r}: write it in one way, or set data.class_names "
                "if they are two classes"
            )
    return [int(text) for text in texts]


def _names_of_table(texts: Sequence[str], lines: Sequence[str], classes: int, where: str) -> tuple[str, ...]:
    """Return the distinct names among labels, in natural order. Raises DataError for numbers among them."""
    some_numbers = any(map(is_number, texts))
    for text, line in zip(texts, lines, strict=True):
        if not text:
            raise DataError(f"{line}: the label is empty: name the class of every image")
        if not is_number(text) and (some_numbers or like_a_number(text)):
            raise DataError(
                f"{line}: label {text[:40]!r} must be one of 0, 1, 2, ...; or set data.class_names to names, such as "
                "this one, that all rows use"
            )
        spelt(text, line)
    names = sorted({unicodedata.normalize("NFC", text) for text in texts}, key=natural)
    if len(names) != classes:
        raise DataError(
            f"{where}: its labels name {len(names)} classes, {listed(names)}, but data.classes = {classes}: correct "
            "them, or list all classes in data.class_names"
        )
    return tuple(names)
