"""The configuration: last wins, YAML types, and messages with key, value, range, nearest name and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskmend import config
from maskmend.config import Config, load
from maskmend.errors import UsageError


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "my config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load(file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults() -> None:
    made = load()
    assert made == Config()
    assert (made.train.steps, made.train.lr, made.device, made.method.name) == (
        2000,
        1e-3,
        "auto",
        "pint_posterior",
    )


def test_defaults_are_not_shared() -> None:
    Config().predict.save.append("probs")
    Config().network.options["a"] = 1
    assert Config().predict.save == ["labels"]
    assert Config().network.options == {}


def test_last_wins(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "train:\n  steps: 10\n  seed: 3\n")
    made = load(file, ["train.steps=20", "train.steps=30"])
    assert (made.train.steps, made.train.seed) == (30, 3)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=2e3", 2000),
        ("train.lr=1e-4", 1e-4),
        ("train.lr=1", 1.0),
        ("train.patch=[32, 64]", [32, 64]),
        ("train.precision=32", "32"),
        ("train.batch=null", None),
        ("train.tensorboard=true", True),
        ("train.augment=none", "none"),
        ("data.labels={background: 0, organ: 255}", {"background": 0, "organ": 255}),
        ("data.labels={organ: 255}", {"organ": 255}),
        ("data.labels={background: 0, no: 1}", {"background": 0, "no": 1}),
        ("data.flips=[true, false]", [True, False]),
        ("data.rater=2", "2"),
        ("data.ignore=-1", -1),
        ("data.cache=a b/c", Path("a b/c")),
        ("device=cuda:1", "cuda:1"),
        ("network.options={channels: [8, 16], norm: BATCH}", {"channels": [8, 16], "norm": "BATCH"}),
    ],
)
def test_yaml_typed_values(override: str, value: Any) -> None:
    found: Any = load(None, [override])
    for name in override.split("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


def test_dotted_key_reaches_into_a_mapping() -> None:
    made = load(None, ["data.labels={background: 0, organ: 1}", "data.labels.organ=255"])
    assert made.data.labels == {"background": 0, "organ": 255}


def test_method_settings_are_passed_on_with_their_types() -> None:
    made = load(
        None, ["method.name=pint", "method.ema=0.99", "method.rate=1e-2", "method.parts=[a]", "method.on=yes"]
    )
    assert made.method.settings == {"ema": 0.99, "rate": 0.01, "parts": ["a"], "on": "yes"}


@pytest.mark.parametrize(
    ("override", "key", "value", "allowed"),
    [
        ("train.steps=0", "train.steps", "0", "a whole number > 0"),
        ("train.steps=2.5", "train.steps", "2.5", "a whole number > 0"),
        ("train.steps=true", "train.steps", "true", "a whole number > 0"),
        ("train.lr=abc", "train.lr", "abc", "a number > 0"),
        ("train.lr=.nan", "train.lr", ".nan", "a number > 0"),
        ("predict.overlap=0.95", "predict.overlap", "0.95", "a number >= 0 and <= 0.9"),
        ("train.augment=no", "train.augment", "no", "one of: default, none, light, strong"),
        ("train.precision=8", "train.precision", "8", "one of: auto, 32, bf16, 16"),
        ("predict.save=[probs, x]", "predict.save", "[probs, x]", "each one of: labels, probs, uncertainty"),
        ("predict.save=[]", "predict.save", "[]", "labels, probs, uncertainty"),
        ("data.spacing_mm=[1, 0]", "data.spacing_mm", "[1, 0]", "2 or 3 entries, each a number > 0"),
        ("data.flips=sideways", "data.flips", "sideways", "auto, none, all or a list (each true or false)"),
        ("device=gpu", "device", "gpu", "auto, cpu, cuda, cuda:0 or mps"),
        ("train=5", "train", "section", "train.steps"),
    ],
)
def test_wrong_value_names_key_value_and_range(override: str, key: str, value: str, allowed: str) -> None:
    text = message(override)
    assert key in text
    assert value in text
    assert allowed in text


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.step=5", "train.steps"),
        ("steps=5", "train.steps"),
        ("network.optoins={}", "network.options"),
        ("trian.seed=1", "train"),
        ("devise=cpu", "device"),
        ("data.spacing=[1, 1]", "data.spacing_mm"),
    ],
)
def test_unknown_key_gets_the_nearest_name(override: str, nearest: str) -> None:
    assert f"did you mean {nearest!r}" in message(override)


def test_unknown_key_with_nothing_near_lists_what_there_is() -> None:
    assert "train" in message("zzz.qq=1")


def test_wrong_value_in_a_file_names_the_line(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "# mine\ntrain:\n  seed: 1\n  steps: -3\n")
    text = message(file=file)
    assert f"{file}:4: train.steps" in text
    assert "-3" in text


def test_unknown_key_in_a_file_names_the_line(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "train:\n  seed: 1\n  stepps: 3\n")
    text = message(file=file)
    assert f"{file}:3" in text
    assert "did you mean 'train.steps'" in text


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "train:\n  steps: 3\n")
    assert str(file) not in message("train.steps=0", file=file)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "train:\n  steps: -3\n  lr: abc\nnope: 1\n")
    text = message(file=file)
    assert "3 settings are wrong" in text
    assert f"{file}:2" in text
    assert f"{file}:3" in text
    assert f"{file}:4" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  steps: 3\n  steps: 4\n", ":3: key 'train.steps' is given twice"),
        ("train: [1,\n", ":2: not valid YAML"),
        ("- a\n- b\n", "a mapping of sections"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("1: 2\n", "unknown key '1'"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    assert said in message(file=yaml_file(tmp_path, text))


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    assert "No such file" in message(file=tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "not UTF-8" in message(file=tmp_path / "b.yaml")


def test_an_empty_file_or_section_means_defaults(tmp_path: Path) -> None:
    assert load(yaml_file(tmp_path, "")) == Config()
    assert load(yaml_file(tmp_path, "train:\ndata:\n  ignore: 7\n")).data.ignore == 7


@pytest.mark.parametrize("text", ["train.steps", "=5", "train.=5", "--steps"])
def test_not_key_value(text: str) -> None:
    assert "key=value" in message(text)


def test_contradictions() -> None:
    assert "share one file value" in message("data.labels={a: 1, b: 1}")
    assert "data.ignore=1" in message("data.labels={a: 0, b: 1}", "data.ignore=1")


@pytest.mark.parametrize("labels", ["{background: 0}", "{organ: 0}", "{background: 0, ignore: 255}"])
def test_labels_without_a_class(labels: str) -> None:
    said = message(f"data.labels={labels}")
    assert "no class beside the background" in said
    assert "{organ: 255}" in said


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    made = load(
        None,
        [
            "data.labels={'no': 0, '1e3': 1, 'ä': 2}",
            "data.rater='007'",
            "train.lr=1e-5",
            "method.name=mine.py",
            "method.x='1e-3'",
            "method.y=1e-3",
            "method.z={a: [1, null, true]}",
        ],
    )
    again = load(yaml_file(tmp_path, config.dump(made)))
    assert again == made
    assert again.method.settings == {"x": "1e-3", "y": 1e-3, "z": {"a": [1, None, True]}}


def test_every_field_is_described() -> None:
    for key, part in config.fields():
        assert part.get("description", "").endswith("."), key


def test_schema_agrees_with_an_independent_validator_on_keys() -> None:
    made = Config().model_dump()
    flat = {f"{name}.{key}" for name, part in made.items() if isinstance(part, dict) for key in part} | {
        "device"
    }
    assert set(config.keys()) == flat


def test_assignment_is_checked() -> None:
    made = Config()
    with pytest.raises(ValueError, match="greater than 0"):
        made.train.steps = 0
