"""A receiver without Opacus still finds every promise that PLD contradicts, and is told what was not checked."""

from pathlib import Path

import pytest

from curriculumdp.release import verify
from curriculumdp.release.certificate import Accounting, account, account_by_pld
from curriculumdp.release.verify import check_release, read_certificate, summary
from tests.support.forged import certify_again
from tests.support.tiny_release import guarantee


@pytest.fixture
def without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "has_opacus", lambda: False)


def test_a_promise_below_the_cost_is_refused_without_opacus(without_opacus: None) -> None:
    cost, problems = verify.recompute(guarantee(epsilon=5.0))
    assert cost is None
    assert "by PLD" in problems[0]


def test_pld_alone_gives_the_figures_that_both_give() -> None:
    both, alone = account(guarantee()), account_by_pld(guarantee())
    assert alone.model_dump().items() <= both.model_dump().items()
    assert not isinstance(alone, Accounting)


@pytest.mark.parametrize("name", ["epsilon_of_events", "epsilon_replace_one"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_figure_by_pld_that_was_changed_is_noticed_without_opacus(
    release: Path, without_opacus: None, name: str, factor: float
) -> None:
    stated = read_certificate(release).accounting
    assert check_release(release).problems == []
    certify_again(release, accounting=stated.model_copy(update={name: factor * getattr(stated, name)}))
    assert any(f"accounting.{name}" in problem for problem in check_release(release).problems)


def test_the_summary_says_what_was_not_checked_and_how_each_figure_is_read(
    release: Path, without_opacus: None
) -> None:
    checked = check_release(release)
    assert checked.certificate is not None
    assert checked.recomputed is not None
    lines = summary(release, checked.certificate, checked.recomputed, None)
    assert lines[0].startswith("verified: ")
    assert any(line.startswith("not checked: the certificate's figures by Opacus") for line in lines)
    assert any("RDP" in line and "a value above the promise is expected" in line for line in lines)
    assert not any("Opacus PRV" in line for line in lines)
