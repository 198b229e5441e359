"""A config is one run or one line that says why not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from curriculumdp.config.changes import PATHS, resume_differences, without_paths
from curriculumdp.config.config import Config, config_from, load_config
from curriculumdp.config.yaml_file import ConfigError, options_of

SMALL = """
name: small
data: {source: digits, units: 1437, classes: 10, channels: 1, size: 8}
privacy: {epsilon: 10, delta: 1e-4}
model: {channels: [16, 32], attention: [4]}
central: {sample_rate: 0.5, noise_multiplier: 6, queries: 12, size: 8}
warmup: {steps: 6, learning_rate: 1e-3}
private: {steps: 5, sample_rate: 0.2, draws: 2, learning_rate: 3e-4}
compute: {microbatch: 64}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_yaml_strings_such_as_3e_4_become_numbers(small: Path) -> None:
    config = load_config(small)
    assert config.private.learning_rate == 3e-4
    assert config.privacy.delta == 1e-4
    assert config.run_dir == "runs/small"
    assert config.private.sigma_data == pytest.approx(3**-0.5)


def test_an_override_replaces_one_value_and_is_yaml(small: Path) -> None:
    config = load_config(
        small, ["privacy.epsilon=1e0", "model.channels=[8,16]", "checkpoint.every=7", "run_dir=/x"]
    )
    assert (config.privacy.epsilon, config.model.channels) == (1.0, (8, 16))
    assert (config.checkpoint.every, config.checkpoint.keep, config.run_dir) == (7, 2, "/x")


def test_a_config_cannot_be_changed_after_loading(small: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(small).privacy.epsilon = 2.0


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("privacy.epsilon=-1", ["privacy.epsilon is -1", "greater than 0", "privacy.epsilon=..."]),
        ("data.shift=4", ["data.shift is 4", "less than half of data.size = 8"]),
        ("model.channels=8", ["model.channels is 8", "must be a list, such as [1, 2]"]),
        ("data.class_names=ill", ["data.class_names is 'ill'", "must be a list"]),
        ("data.shift=-1", ["data.shift is -1", "greater than or equal to 0"]),
        ("data.shift=0.5", ["data.shift is 0.5", "integer"]),
        ("data.flip=sideways", ["data.flip is 'sideways'", "boolean"]),
        ("private.noise_levels=even", ["private.noise_levels is 'even'", "'independent' or 'spread'"]),
        ("private.ema_width=0", ["private.ema_width is 0", "greater than 0"]),
        ("private.ema_width=0.3", ["private.ema_width is 0.3", "less than or equal to 0.25"]),
        ("warmup.perturbation=-0.1", ["warmup.perturbation is -0.1", "greater than or equal to 0"]),
        ("warmup.perturbation=.inf", ["warmup.perturbation", "finite"]),
        ("privacy.epsilon=0", ["privacy.epsilon is 0", "greater than 0"]),
        ("privacy.delta=1", ["privacy.delta is 1", "less than 1"]),
        ("privacy.delta=9e-11", ["privacy.delta is 9e-11", "at least 1e-10", "privacy.delta=1e-10"]),
        ("privacy.delta=1e-3", ["privacy.delta is 0.001", "1437 units", "below 1/1437"]),
        ("privacy.epsilonn=1", ["unknown key privacy.epsilonn", "did you mean privacy.epsilon?"]),
        ("epsilon=1", ["unknown key epsilon", "did you mean privacy.epsilon?"]),
        ("foo=1", ["unknown key foo", "allowed keys here: name,"]),
        ("data=3", ["data is 3", "must be a section with the keys source,"]),
        ("private=null", ["private is None", "must be a section"]),
        ("private.steps=yes", ["private.steps is True", "number, not true or false"]),
        ("private.steps=1.5", ["private.steps is 1.5", "integer"]),
        ("private.steps=0", ["private.steps is 0", "greater than or equal to 1"]),
        ("private.learning_rate=.nan", ["private.learning_rate is nan", "finite"]),
        ("private.p_mean=-.inf", ["private.p_mean is -inf", "finite"]),
        ("private.learning_rate=inf", ["private.learning_rate is 'inf'", "finite"]),
        ("private.sample_rate=1.01", ["private.sample_rate is 1.01", "less than or equal to 1"]),
        ("central.sample_rate=0", ["central.sample_rate is 0", "greater than 0"]),
        ("central.queries=0", ["central.queries is 0"]),
        ("central.noise_multiplier=0", ["central.noise_multiplier is 0"]),
        ("central.size=9", ["central.size is 9", "at most data.size = 8"]),
        ("central.median=2", ["central.median is 2", "odd"]),
        ("data.source=pickle", ["data.source is 'pickle'", "'dicom', 'parquet' or 'tar'"]),
        ("data.source=idx", ["data.path is missing", "set data.path"]),
        ("data.path=/x", ["data.path is '/x'", "remove data.path"]),
        ("data.window=[0, 9]", ["data.window is given", "source digits"]),
        ("data.class_counts=[1, 2]", ["data.class_counts has 2 counts", "data.classes = 10"]),
        ("data.class_counts=[1,1,1,1,1,1,1,1,1,-1]", ["data.class_counts.9 is -1"]),
        ("data.channels=2", ["data.channels is 2", "1 or 3"]),
        ("data.size=9", ["data.size = 9", "multiple of 2"]),
        ("data.ledger=/x", ["data.ledger is given without data.name"]),
        ("model.attention=[5]", ["model.attention has 5", "[8, 4]"]),
        ("model.groups=16", ["model.groups is 16", "at least 2 channels"]),
        ("model.groups=3", ["model.groups is 3", "divide every level"]),
        ("model.channels=[32, 36]", ["level of 36 channels", "divide every level"]),
        ("model.channels=[]", ["model.channels is []", "at least 1"]),
        ("model.channels=[16, true]", ["model.channels.1 is True", "model.channels=..."]),
        ("compute.precision=bf16", ["compute.precision is 'bf16'", "compute.device=cuda"]),
        ("curriculum=[private]", ["central is given", "set central=null", "(and 1 more problem)"]),
        ("curriculum=[warmup, central, private]", ["curriculum is", "in the order"]),
        ("curriculum=[central, private]", ["central and warmup go together", "more problem"]),
        ("curriculum=[]", ["curriculum is []"]),
        ("central=null", ["central is missing but curriculum lists it"]),
        ("name=../up", ["name is '../up'", "pattern"]),
        ("name=12", ["name is 12", "valid string"]),
        ("privacy={epsilon: 1, epsilon: 2, delta: 1e-5}", ["'epsilon' is given twice"]),
        ("privacy.epsilon=[1", ["override 'privacy.epsilon=[1'", "not valid YAML"]),
        ("privacy.epsilon=2024-99-99", ["not valid YAML"]),
        ("privacy.epsilon", ["write key.path=value"]),
        ("=1", ["write key.path=value"]),
        ("name.first=x", ["name is 'small', not a section"]),
        ("privacy={}", ["privacy.epsilon is missing", "the budget", "(and 1 more problem)"]),
    ],
)
def test_a_bad_value_gives_one_line_with_key_value_and_fix(
    small: Path, override: str, parts: list[str]
) -> None:
    message = complaint(small, override)
    for part in parts:
        assert part in message


def test_count_weight_needs_a_mean_without_public_counts(small: Path) -> None:
    assert "count_weight" in complaint(small, "central.statistic=mode", "central.count_weight=1")
    counts = "data.class_counts=[" + ",".join(["143"] * 10) + "]"
    assert "count_weight" in complaint(small, counts, "central.count_weight=1")
    assert load_config(small, ["central.count_weight=1"]).central is not None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "a config is a mapping"),
        ("- 1", "a config is a mapping"),
        ("name: a\nname: b", "line 2"),
        ("name: [", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("a: &a [*a]", "aliases are not allowed"),
        ("1: 2", "missing"),
        ("\x00", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_a_broken_file_gives_one_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = complaint(path)
    assert part in message
    assert str(path) in message


def test_a_missing_file_a_folder_and_foreign_bytes_are_named(tmp_path: Path) -> None:
    assert "cannot read" in complaint(tmp_path / "absent.yaml")
    assert "cannot read" in complaint(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\xfe\xe9")
    assert "latin.yaml" in complaint(tmp_path / "latin.yaml")


def test_the_curricula_that_make_sense_are_allowed(small: Path) -> None:
    alone = load_config(small, ["curriculum=[private]", "central=null", "warmup=null"])
    assert alone.central is None
    assert load_config(small, ["curriculum=[central, warmup]"]).curriculum == ("central", "warmup")


def test_groups_follow_the_narrowest_level_unless_given(small: Path) -> None:
    assert load_config(small).model.norm_groups == 4
    assert load_config(small, ["model.groups=2"]).model.norm_groups == 2


def test_a_resolved_config_survives_json_and_comes_back_equal(small: Path) -> None:
    config = load_config(small)
    saved = json.loads(json.dumps(config.resolved()))
    assert config_from(saved, "ledger") == config
    assert resume_differences(saved, config) == []


def changes(small: Path, *overrides: str) -> dict[str, str]:
    saved = json.loads(json.dumps(load_config(small).resolved()))
    return {change.key: change.kind for change in resume_differences(saved, load_config(small, overrides))}


def test_a_changed_option_is_neutral_fresh_or_refused(small: Path) -> None:
    assert changes(small, "run_dir=/elsewhere", "logging.tensorboard=true") == {
        "run_dir": "neutral",
        "logging.tensorboard": "neutral",
    }
    assert changes(small, "compute.threads=1", "compute.microbatch=8", "compute.device=cpu") == {
        "compute.device": "fresh",
        "compute.threads": "fresh",
        "compute.microbatch": "fresh",
    }
    refused = changes(
        small, "privacy.epsilon=11", "seed=1", "model.channels=[8, 32]", "data.size=4", "central.size=4"
    )
    assert set(refused.values()) == {"refused"}
    assert set(refused) == {"privacy.epsilon", "seed", "model.channels", "data.size", "central.size"}


def test_all_that_decides_the_release_is_refused_on_resume() -> None:
    def kinds(wanted: str) -> set[str]:
        return {
            key
            for key, field in options_of(Config)
            if (field.json_schema_extra or {}).get("resume") == wanted
        }

    assert kinds("fresh") == {
        f"compute.{name}"
        for name in ("device", "threads", "microbatch", "precision", "memory_format", "capture")
    }
    assert kinds("neutral") == {
        *PATHS,
        "name",
        "compute.processes",
        "compute.join_minutes",
        "checkpoint.every",
        "checkpoint.keep",
        "logging.tensorboard",
        "logging.show_private_metrics",
        "logging.trackers",
        "logging.track_private_metrics",
        "sampling.sampler",
        "sampling.steps",
        "sampling.per_class",
    }


def test_an_option_that_this_version_does_not_know_is_refused(small: Path) -> None:
    config = load_config(small)
    saved = config.resolved() | {"shortcut": 1}
    (change,) = resume_differences(saved, config)
    assert (change.key, change.was, change.now, change.kind) == ("shortcut", 1, None, "refused")
    assert "\n" not in str(change)


def test_what_leaves_names_no_place_on_this_machine(small: Path) -> None:
    secret = "/home/somebody"
    config = load_config(
        small,
        [
            "data.source=image_folder",
            "data.name=xrays",
            *(f"{key}={secret}/{key}" for key in PATHS),
            f"init_from={secret}/models/public",
        ],
    )
    public = without_paths(config)
    assert secret not in json.dumps(public)
    assert public["init_from"] == "public"
    assert public["data"]["name"] == "xrays"
    assert yaml.safe_load(yaml.safe_dump(public)) == public


def test_every_option_explains_itself() -> None:
    undescribed = [key for key, field in options_of(Config) if not field.description]
    assert undescribed == []


def test_importing_the_config_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, curriculumdp.config; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", [*(key for key in PATHS if key != "data.ledger"), "init_from"])
def test_a_tilde_in_any_path_is_the_home(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    wanted = [f"{key}=~/deep/it", "data.name=named"]
    if key in ("data.csv", "data.roster"):
        wanted += ["data.source=image_folder", "data.path=/images"]
    if key == "data.path":
        wanted += ["data.source=npz"]
    section, _, last = key.rpartition(".")
    config = load_config("configs/digits.yaml", wanted)
    assert getattr(getattr(config, section) if section else config, last) == "/home/somebody/deep/it"
    with pytest.raises(ConfigError, match=rf"{key}.*no such user"):
        load_config("configs/digits.yaml", [f"{key}=~nobody-of-that-name/it", *wanted[1:]])


def test_a_config_file_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(Path("configs/digits.yaml").read_text())
    assert load_config("~/mine.yaml").name == "digits"
