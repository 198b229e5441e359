"""A release whose certificate was written again, as somebody without the key can."""

from pathlib import Path
from typing import Any

from curriculumdp.release.certificate import Certificate, certificate_bytes
from curriculumdp.release.files import file_sha256
from curriculumdp.release.verify import read_certificate


def certify_again(release: Path, **changes: Any) -> None:
    """Rewrites the certificate over what lies in the folder, as an unsigned forger would."""
    old = read_certificate(release)
    files = {name: file_sha256(release / name) for name in old.files if (release / name).is_file()}
    new = Certificate.model_validate(dict(old) | {"files": files} | changes)
    (release / "privacy.json").write_bytes(certificate_bytes(new))


def with_row(release: Path, **changes: Any) -> dict[str, Any]:
    """A guarantee whose second release is changed."""
    said = read_certificate(release).guarantee
    rows = (said.events[0], said.events[1].model_copy(update=changes))
    return {"guarantee": said.model_copy(update={"events": rows})}
