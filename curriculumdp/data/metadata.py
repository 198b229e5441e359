"""Reader for Hugging Face's image folders: metadata.jsonl names each image, its label and, if given, its unit."""

import json
from pathlib import Path

from curriculumdp.data.images import DataError
from curriculumdp.data.records import Records

METADATA, FILE_NAME = "metadata.jsonl", "file_name"


def metadata_rows(table: Path) -> tuple[list[str], Records]:
    """Return the file names and the records of a metadata.jsonl, PRIVATE. Raises DataError, which names the line."""
    names, records = [], Records()
    try:
        with table.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{table} line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    raise DataError(f"{where}: is not JSON: write one object per line") from None
                name = row.pop(FILE_NAME, None) if isinstance(row, dict) else None
                if not isinstance(name, str):
                    raise DataError(
                        f'{where}: must be an object such as {{"file_name": "a.png", "label": 0}}'
                    )
                records.add(row, where)
                names.append(name)
    except UnicodeDecodeError:
        raise DataError(f"{table}: cannot be read, as it is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error})") from None
    return names, records
