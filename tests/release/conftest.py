"""A signed release to be spoiled, and accountants that are asked once for each question."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release import agreement, certificate
from tests.support.tiny_release import write_keys, write_release

Method = Callable[[Sequence[PrivacyEvent], float], object]


def kept(method: Method) -> Method:
    """The same method, which keeps its answers; what it raises it is asked for again."""
    answers = cache(method)
    return lambda events, delta: answers(tuple(events), delta)


# For the whole session: the four figures of a certificate take two seconds.
KEPT: dict[tuple[ModuleType, str], Method] = {
    (module, name): kept(getattr(module, name))
    for module, names in {
        certificate: ("epsilon", "epsilon_replace_one", "epsilon_opacus_rdp", "epsilon_prv"),
        agreement: ("epsilon",),
    }.items()
    for name in names
}


@pytest.fixture(scope="module", autouse=True)
def asked_once() -> Iterator[None]:
    """Accountants answer equal events at an equal δ once; what is made of the answers is made each time."""
    with pytest.MonkeyPatch.context() as patched:
        for (module, name), method in KEPT.items():
            patched.setattr(module, name, method)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, asked_once: None) -> tuple[Path, Path]:
    """(a signed release, its signer's public key)."""
    folder = tmp_path_factory.mktemp("run")
    private, public = write_keys(folder, "ours")
    return write_release(folder / "release", signing_key=private), public


@pytest.fixture
def release(original: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(original[0], tmp_path / "release"))
