"""Several runs in one process, of which accelerate remembers one precision: every run has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from langevin.core.errors import ConfigError
from tests.training.line import bits, trainer
from tests.training.recipes.places import own_precision


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Leave accelerate as it was found."""
    with own_precision():
        yield


def test_a_run_computes_as_it_would_alone_whatever_ran_before(tmp_path) -> None:
    runs = []
    for name, precision in (("alone", None), ("half", "bf16"), ("after", None), ("again", "bf16")):
        run = trainer(tmp_path / name, mixed_precision=precision)
        assert run.accelerator.mixed_precision == (precision or "no")
        run.fit()
        runs.append(bits(run))
    assert runs[0] == runs[2] != runs[1] == runs[3]


def test_an_accelerator_of_the_caller_is_left_alone(tmp_path) -> None:
    from accelerate import Accelerator

    own = Accelerator(mixed_precision="bf16")
    assert trainer(tmp_path / "one").accelerator.mixed_precision == "bf16"
    assert trainer(tmp_path / "two", mixed_precision="bf16").accelerator.mixed_precision == "bf16"
    with pytest.raises(ConfigError, match=r"has an Accelerator for mixed_precision='bf16'.*asks for 'no'"):
        trainer(tmp_path / "three", mixed_precision="no")
    assert own.mixed_precision == "bf16"


def test_a_run_that_lost_its_precision_to_another_says_so(tmp_path) -> None:
    first = trainer(tmp_path / "first")
    trainer(tmp_path / "second", mixed_precision="bf16")
    with pytest.raises(ConfigError, match=r"computes in 'no', and another one.*'bf16'; finish one run"):
        first.fit()
    third = trainer(tmp_path / "third", watch=[lambda run: trainer(tmp_path / "fourth", mixed_precision="bf16")])
    with pytest.raises(ConfigError, match="finish one run"):
        third.fit()
    assert third.step == 1
