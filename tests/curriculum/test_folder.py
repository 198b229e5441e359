"""What a run's folder keeps: a secret of its own, and the plan that was solved when it began."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from curriculumdp.config.config import Config
from curriculumdp.curriculum import folder
from curriculumdp.curriculum.folder import RunFolder
from curriculumdp.curriculum.plan import Plan
from curriculumdp.data.images import ImageSet
from tests.support.runs import plan_of, tiny


def opened(config: Config, images: ImageSet) -> tuple[RunFolder, Plan]:
    """The folder of a run that begins or goes on, and the plan that it hands to training."""
    held = RunFolder(Path(config.run_dir))
    with ExitStack() as stack:
        held.claim(stack, config)
        record = held.open_ledger(stack, config, images, 40, None)
    return held, Plan.from_record(json.loads(record))


def test_every_run_has_a_secret_of_its_own_whatever_its_config_and_seed(tmp_path, digits):
    runs = [opened(tiny(tmp_path / name), digits)[0] for name in ("one", "two")]
    assert len({held.secret_file.read_bytes() for held in runs}) == 2
    assert len({held.ledger.run for held in runs}) == 2


def test_the_noise_is_never_solved_again_for_a_run_that_has_begun(tmp_path, digits, monkeypatch):
    """Another version of the accountant would answer otherwise: the ledger's plan is the run's to its end."""
    config = tiny(tmp_path)
    _, first = opened(config, digits)

    def solved_otherwise(config: Config) -> Plan:
        plan = plan_of(config)
        less = [row if row.name != "private" else replace(row, noise_multiplier=0.2) for row in plan.phases]
        return replace(plan, phases=tuple(less))

    monkeypatch.setattr(folder, "plan_curriculum", solved_otherwise)
    _, again = opened(config, digits)
    assert again == first == plan_of(config)


def test_a_run_that_goes_on_has_the_secret_and_the_ledger_that_it_began_with(tmp_path, digits):
    held, _ = opened(tiny(tmp_path), digits)
    secret, lines = held.secret_file.read_bytes(), (held.private / "ledger.jsonl").read_bytes()
    held, _ = opened(tiny(tmp_path), digits)
    assert held.secret_file.read_bytes() == secret
    assert (held.private / "ledger.jsonl").read_bytes() == lines


@pytest.mark.parametrize("key", ["private__clip_norm", "privacy__epsilon", "data__units"])
def test_a_secret_never_serves_another_config(tmp_path, digits, key):
    """Refused by its record in the ledger, too, where the folder's own config.json was exchanged with it."""
    config = tiny(tmp_path)
    held, _ = opened(config, digits)
    other = tiny(tmp_path, **{key: {"data__units": 1438}.get(key, 2.0)})
    (held.private / "config.json").write_text(json.dumps(other.resolved()))
    with pytest.raises(ValueError, match="config is"):
        opened(other, digits)
