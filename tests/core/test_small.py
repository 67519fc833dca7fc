"""Outputs, errors, optional imports, logging and random streams."""

import io
from dataclasses import dataclass

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
    assert imports.is_available("torch") and imports.version("torch").startswith(torch.__version__.split("+")[0])


def test_verbosity_and_bars():
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    assert logging.get_verbosity() == logging.ERROR
    logging.set_verbosity(before)
    logging.disable_progress_bar()
    assert progress_bar(range(3)).disable
    logging.enable_progress_bar()
    assert not progress_bar(range(0), file=io.StringIO()).disable


def test_list_of_generators_equals_single_images():
    batch = rng.normal((3, 4, 2), generator=[rng.seeded(k) for k in range(3)])
    for k in range(3):
        assert torch.equal(batch[k : k + 1], rng.normal((1, 4, 2), generator=rng.seeded(k)))


def test_seed_plus_k_makes_image_k_alone():
    batch = rng.normal((3, 5), generator=rng.streams(3, seed=7))
    assert torch.equal(batch[2:], rng.normal((1, 5), generator=rng.streams(1, seed=9)))
    assert torch.equal(batch, rng.normal((3, 5), generator=rng.streams(3, seed=[7, 8, 9])))


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
    with pytest.raises(errors.InputError, match="one per image"):
        rng.normal((3, 2), generator=[rng.seeded(0), rng.seeded(1)])


def test_a_misspelt_public_name_is_named():
    import langevin

    with pytest.raises(AttributeError, match="did you mean 'BaseOutput'"):
        _ = langevin.BaseOutpu
    with pytest.raises(ImportError):
        from langevin import NoSuchThing  # noqa: F401
    assert "ConfigMixin" in dir(langevin)
