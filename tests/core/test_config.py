"""Configurations are frozen, lossless towards files and strict towards callers."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from langevin.core.config import Config, ConfigMixin, register_to_config
from langevin.core.errors import ConfigError


class Lamp(ConfigMixin):
    config_name = "lamp.json"
    renamed_options = {"brightness": "power"}

    @register_to_config
    def __init__(self, power: int = 40, colours=("warm", "cold"), shade: str | None = None):
        self.power = power


class Lantern(ConfigMixin):
    config_name = "lamp.json"

    @register_to_config
    def __init__(self, power: int = 3, battery: str = "AA"):
        self.power = power


def test_config_holds_arguments_and_defaults():
    lamp = Lamp(60)
    assert lamp.config.power == lamp.config["power"] == 60
    assert lamp.config.colours == ("warm", "cold")
    assert lamp.config["_use_default_values"] == ["colours", "shade"]


@pytest.mark.parametrize("change", [
    lambda c: c.__setitem__("power", 1), lambda c: setattr(c, "power", 1), lambda c: c.pop("power"),
    lambda c: c.update(power=1), lambda c: c.setdefault("new", 1), lambda c: c.clear(),
    lambda c: c.__delitem__("power"),
])  # fmt: skip
def test_config_is_immutable(change):
    lamp = Lamp()
    with pytest.raises(ConfigError, match="from_config"):
        change(lamp.config)
    assert lamp.config.power == 40


def test_config_survives_copy_and_pickle():
    config = Lamp(5).config
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config)) and copy.copy(config) is config
    assert isinstance(pickle.loads(pickle.dumps(config)), Config)
    with pytest.raises(AttributeError, match="watts"):
        _ = config.watts


def test_json_is_sorted_with_two_spaces(tmp_path):
    Lamp(7).save_config(tmp_path)
    text = (tmp_path / "lamp.json").read_text()
    values = json.loads(text)
    assert list(values) == sorted(values) and text.startswith('{\n  "_class_name": "Lamp"') and text.endswith("}\n")
    assert values["power"] == 7 and "_use_default_values" not in values


def test_values_that_json_does_not_know_are_written_in_its_terms():
    values = {
        "path": Path("a") / "b", "array": np.arange(2), "tensor": torch.ones(1, 1), "kind": torch.float16, 3: {4},
        "part": Lamp(2), "nothing": None, "truth": True,
    }  # fmt: skip
    read = json.loads(repr(Config(values)))
    assert {**read, "part": read["part"]["power"]} == {
        "path": "a/b", "array": [0, 1], "tensor": [[1.0]], "kind": "torch.float16", "3": [4],
        "part": 2, "nothing": None, "truth": True,
    }  # fmt: skip


def test_unknown_keys_of_a_file_are_kept_and_reported(tmp_path, caplog):
    from langevin.utils import logging

    (tmp_path / "lamp.json").write_text('{"_class_name": "Lamp", "power": 9, "wattage": 11}')
    logging.enable_propagation()
    lamp = Lamp.from_config(Lamp.load_config(tmp_path))
    logging.disable_propagation()
    assert "wattage" in caplog.text
    lamp.save_config(tmp_path)
    assert json.loads((tmp_path / "lamp.json").read_text())["wattage"] == 11


def test_unknown_options_of_the_caller_are_errors():
    with pytest.raises(ConfigError, match="did you mean 'power'"):
        Lamp(powr=1)
    with pytest.raises(ConfigError, match="did you mean 'colours'"):
        Lamp.from_config({"power": 1}, colors=())
    lamp, unused = Lamp.from_config({"power": 1}, return_unused_kwargs=True, other=2)
    assert unused == {"other": 2} and lamp.power == 1


def test_another_class_takes_its_own_defaults_and_gives_back_what_it_does_not_know():
    lantern = Lantern.from_config(Lamp(shade="silk").config)
    assert lantern.power == 3 and lantern.config.shade == "silk"
    assert Lantern.from_config(Lamp(60).config).power == 60
    back = Lamp.from_config(lantern.config)
    assert back.config.shade == "silk" and back.power == 40


def test_renamed_option_is_accepted():
    assert Lamp(brightness=8).power == 8
    assert Lamp.from_config({"brightness": 8}).config.power == 8


@pytest.mark.parametrize("content", ["not json", "[1, 2]", b"\xff\xfe\x00"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "lamp.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"lamp\.json"):
        Lamp.load_config(tmp_path)


def test_from_config_wants_a_mapping():
    with pytest.raises(ConfigError, match="from_pretrained"):
        Lamp.from_config("folder")


def test_what_a_configuration_cannot_do_is_said():
    class Bare(ConfigMixin):
        @register_to_config
        def __init__(self, size: int):
            pass

    with pytest.raises(ConfigError, match="Bare needs size, which the configuration does not hold"):
        Bare.from_config({})
    with pytest.raises(ConfigError, match="Bare names no configuration file"):
        Bare.load_config("folder")
    assert Bare.load_config({"size": 1}) == {"size": 1} and Bare(2).config.size == 2
