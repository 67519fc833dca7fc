"""Outputs, errors, optional imports, logging and random streams."""

import io
import re
from dataclasses import dataclass
from logging import StreamHandler
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from langevin.core import errors, imports, logging, rng
from langevin.core.outputs import BaseOutput
from langevin.core.progress import progress_bar


@dataclass
class Result(BaseOutput):
    images: list
    flags: list | None = None
    score: float = 0.5


def test_output_is_a_record_a_tuple_and_a_mapping():
    out = Result(images=[1])
    assert out.images == out["images"] == out[0] == [1]
    assert out.to_tuple() == ([1], 0.5) and out[-1] == 0.5 and out[:1] == ([1],)
    assert dict(**out) == {"images": [1], "score": 0.5} == dict(out.items())
    assert list(out) == ["images", "score"] and len(out) == 2 and "flags" not in out and out.get("flags", 3) == 3
    out["flags"] = [True]
    assert out.flags == [True]
    with pytest.raises(KeyError, match="images, flags, score"):
        out["image"]
    with pytest.raises(KeyError):
        out["image"] = 1


def test_errors_name_the_nearest_option():
    assert errors.nearest("EulerDiscreet", ["EulerDiscrete", "DDIM"]) == "EulerDiscrete"
    assert errors.nearest("zzz", ["EulerDiscrete"]) is None
    assert errors.did_you_mean("zzz", ["b", "a"]) == "; valid: a, b."
    with pytest.raises(errors.InputError, match="did you mean 'pil'"):
        errors.check_choice("output_type", "pill", ["pil", "np"])
    assert issubclass(errors.InputError, ValueError) and issubclass(errors.ConfigError, ValueError)


def test_a_missing_package_is_named_with_its_cure():
    with pytest.raises(errors.MissingDependencyError, match="pip install opencv-python"):
        imports.require("cv2", why="reading a video")
    with pytest.raises(errors.MissingDependencyError, match=r"langevin\[training\]"):
        imports.require("no_such_package", why="training", extra="training")
    assert imports.require("json", why="x").loads("1") == 1
    assert not imports.is_available("no_such_package.part") and imports.version("no_such_package") is None
    with pytest.raises(ModuleNotFoundError, match=r"json\.nothing") as raised:
        imports.require("json.nothing", why="x")
    assert not isinstance(raised.value, errors.MissingDependencyError), "the package is there; the fault is elsewhere"
    assert imports.late("core.rng") is rng
    assert imports.is_available("torch") and imports.version("torch").startswith(torch.__version__.split("+")[0])


def test_verbosity_and_bars():
    before = logging.get_verbosity()
    for name in ("debug", "info", "warning", "error"):
        getattr(logging, f"set_verbosity_{name}")()
        assert logging.get_verbosity() == logging.log_levels[name]
    logging.set_verbosity(before)
    logging.disable_progress_bar()
    assert progress_bar(range(3)).disable
    logging.enable_progress_bar()
    assert not progress_bar(range(0), file=io.StringIO()).disable


def test_records_go_where_they_are_sent(capsys):
    own = io.StringIO()
    handler = StreamHandler(own)
    logging.add_handler(handler)
    logging.disable_default_handler()
    logging.get_logger("langevin.test").warning("one")
    logging.enable_default_handler()
    logging.enable_explicit_format()
    logging.get_logger("langevin.test").warning("two")
    logging.reset_format()
    logging.remove_handler(handler)
    logging.get_logger("langevin.test").warning("three")
    one, two = own.getvalue().splitlines()
    assert one == "one" and re.fullmatch(r"\S+ \S+ WARNING langevin\.test:\d+: two", two)
    assert capsys.readouterr().err.splitlines() == [two, "three"]


def test_the_verbosity_of_the_environment(monkeypatch, capsys):
    before, root = logging.get_verbosity(), logging.get_logger()
    own = logging._handler
    for wanted, level in (("INFO", logging.INFO), ("loud", logging.WARNING)):
        monkeypatch.setenv("LANGEVIN_VERBOSITY", wanted)
        monkeypatch.setattr(logging, "_handler", None)
        assert logging.get_verbosity() == level
        root.removeHandler(logging._handler)
    monkeypatch.undo()
    assert logging._handler is own and own in root.handlers
    logging.set_verbosity(before)
    assert "'loud'; valid: debug, info, warning" in capsys.readouterr().err


def test_list_of_generators_equals_single_images():
    batch = rng.normal((3, 4, 2), generator=[rng.seeded(k) for k in range(3)])
    for k in range(3):
        assert torch.equal(batch[k : k + 1], rng.normal((1, 4, 2), generator=rng.seeded(k)))
    alone = rng.uniform((3, 2), generator=[rng.seeded(0)])
    assert torch.equal(alone, rng.uniform((3, 2), generator=rng.seeded(0))) and alone.min() >= 0 and alone.max() < 1


@pytest.mark.parametrize("seed", ["x", b"x", 1.5, True, ["x", 1], [1, None]])
def test_a_seed_that_is_no_whole_number_is_an_error(seed):
    with pytest.raises(errors.InputError, match="pass a whole number, seed=0, or a list of them"):
        rng.streams(2, seed=seed)


def test_seed_plus_k_makes_image_k_alone():
    batch = rng.normal((3, 5), generator=rng.streams(3, seed=7))
    assert torch.equal(batch[2:], rng.normal((1, 5), generator=rng.streams(1, seed=9)))
    assert torch.equal(batch, rng.normal((3, 5), generator=rng.streams(3, seed=[7, 8, 9])))
    for seed in (np.int32(7), [np.uint8(7), np.int64(8), 9]):
        assert torch.equal(batch, rng.normal((3, 5), generator=rng.streams(3, seed=seed)))
    assert [g.initial_seed() for g in rng.streams(2, seed=np.uint8(255))] == [255, 256]


def test_the_global_stream_is_neither_read_nor_advanced():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = rng.normal((8,), generator=rng.streams(1))
    torch.set_rng_state(state)
    second = rng.normal((8,))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_streams_are_refused():
    with pytest.raises(errors.InputError, match="pass one of them"):
        rng.streams(1, generator=rng.seeded(0), seed=0)
    with pytest.raises(errors.InputError, match="2 seeds were given for 3"):
        rng.streams(3, seed=[1, 2])
    with pytest.raises(errors.InputError, match="seed=0"):
        rng.streams(1, generator=0)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(errors.InputError, match=f"seed {seed} is out of bounds"):
            rng.streams(1, seed=seed)
    with pytest.raises(errors.InputError, match=r"lives on meta and cannot serve cpu"):
        rng.normal((1,), generator=SimpleNamespace(device=torch.device("meta")))
    with pytest.raises(errors.InputError, match=r"`layout` is torch\.sparse_coo"):
        rng.randn_tensor((1,), layout=torch.sparse_coo)
    with pytest.raises(errors.InputError, match="one per image"):
        rng.normal((3, 2), generator=[rng.seeded(0), rng.seeded(1)])


def test_a_misspelt_public_name_is_named():
    import langevin

    with pytest.raises(AttributeError, match="did you mean 'BaseOutput'"):
        _ = langevin.BaseOutpu
    with pytest.raises(ImportError):
        from langevin import NoSuchThing  # noqa: F401
    assert "ConfigMixin" in dir(langevin)


def test_what_counts_as_a_number():
    assert all(map(errors.is_number, (0, 2.5, np.float32(0.5), np.int8(3))))
    assert not any(map(errors.is_number, (True, None, "1", [1], 1j, float("nan"), -float("inf"))))
    for value in (0, -1, 1.0, True, "2", None, np.float64(2)):
        with pytest.raises(errors.InputError, match=re.escape(f"`n` is {value!r}; it must be a whole number of at ")):
            errors.check_count("n", value)
    errors.check_count("n", np.int64(1))
    errors.check_count("n", 0, low=0)
    errors.check_number("x", np.float32(1), low=0, high=1)
    with pytest.raises(errors.InputError, match=r"`x` is 1\.5; it must be between 0 and 1"):
        errors.check_number("x", 1.5, low=0, high=1)
