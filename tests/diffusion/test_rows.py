"""Ways around the plain arithmetic of a row: clipped data without the data, boundaries within coefficients."""

from __future__ import annotations

import pytest
import torch

from langevin.core.rng import seeded
from langevin.diffusion import Level, Prediction
from langevin.diffusion.prediction import Boundary, mix
from langevin.diffusion.process import flow, preserving
from langevin.diffusion.rows import Clipped, Move, Row, Run

LEVELS = [preserving(500, 0.02), preserving(500, 1.3), preserving(900, 40.0), flow(3, 0.4), Level(1, 1.0, 8.0)]


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=seeded(seed), dtype=torch.float64)


def row(level: Level, **more: object) -> Row:
    return Row(level, level, sample=0.3, outputs=(-0.7,), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_step_on_clipped_data_does_without_the_data(kind: str, level: Level) -> None:
    prediction, x, output = Prediction(kind, clip=0.8), drawn(1), drawn(2)
    move = Move(row(level), prediction, wants="x0")
    assert isinstance(move.clipped, Clipped)
    run = Run((move,))
    found = run.advance(x, output, 0)
    data = prediction.data(x, output, level)
    assert data.abs().max() == 0.8, "something is clipped"
    assert torch.allclose(found, -0.7 * data + 0.3 * x, rtol=1e-12, atol=1e-12)
    assert run.x0 is not None and torch.allclose(run.x0, data, rtol=1e-12, atol=1e-12)
    half = Run((move,)).advance(x.bfloat16(), output.bfloat16(), 0)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), found, rtol=0.05, atol=0.05 * float(found.abs().max()))


@pytest.mark.parametrize(
    ("prediction", "wants", "more"),
    [
        (Prediction(clip=0.8), "x0", {"keep": (0,)}),
        (Prediction(clip=0.8), "x0", {"direction": 0.2}),
        (Prediction(clip=0.8), "eps", {}),
        (Prediction(threshold=(0.9, 1.5)), "x0", {}),
        (Prediction(clip=0.8, boundary=Boundary(0.01)), "x0", {}),
        (Prediction("sample", clip=0.8), "x0", {}),
        (Prediction(), "x0", {}),
    ],
)
def test_what_needs_the_data_itself_computes_it(prediction: Prediction, wants: str, more: dict) -> None:
    level = LEVELS[1]
    move = Move(row(level, **more), prediction, wants=wants)  # type: ignore[arg-type]
    assert move.clipped is None
    x, output = drawn(1), drawn(2)
    present = prediction.data(x, output, level) if wants == "x0" else prediction.at(level).bounded_noise(x, output)
    wanted = -0.7 * present + 0.3 * x + more.get("direction", 0.0) * prediction.noise(x, output, level)
    assert torch.allclose(Run((move,)).advance(x, output, 0), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", [Prediction(clip=0.8), Prediction(threshold=(0.9, 1.5))])
def test_a_step_to_the_data_itself_returns_a_tensor_of_its_own(prediction: Prediction) -> None:
    level, x, output = LEVELS[1], drawn(1), drawn(2)
    run = Run((Move(Row(level, level, outputs=(1.0,)), prediction, wants="x0"),))
    found = run.advance(x, output, 0)
    assert torch.allclose(found, prediction.data(x, output, level), rtol=1e-12)
    found.zero_()
    assert run.x0 is not None and run.x0.abs().max() > 0


@pytest.mark.parametrize("clip", [None, 0.8])
def test_a_boundary_is_part_of_the_coefficients_where_nothing_is_clipped(clip: float | None) -> None:
    boundary, level, x, output = Boundary(0.01), preserving(50, 1.3), drawn(1), drawn(2)
    prediction = Prediction("epsilon", clip=clip, boundary=boundary)
    plain = Prediction("epsilon", clip=clip).data(x, output, level)
    assert torch.allclose(prediction.data(x, output, level), mix(boundary(level), x, plain), rtol=1e-12)
    assert (Move(row(level), prediction, wants="x0").linear is None) == (clip is not None)
    assert Move(row(level), prediction, wants="eps").linear is None, "the noise follows from the bounded data"
    eps = (x - level.alpha * prediction.data(x, output, level)) / level.sigma
    assert torch.allclose(prediction.at(level).bounded_noise(x, output), eps, rtol=1e-9)
