"""One optimizer step of every objective, against formulas of the papers in numpy, gradients included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langevin.diffusion.betas import betas
from langevin.diffusion.objective import Noising, Objective
from langevin.diffusion.process import TableProcess
from langevin.training.data.paired import Paired
from langevin.training.denoising import Denoiser, Unconditional
from langevin.training.streams import Draw
from langevin.training.trainer import Losses, Run, Trainer

SHAPE = (2, 3, 3)
RATE, DECAY, EPSILON = 0.1, 0.2, 0.3
LEVELS = 1000
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=RATE),
    "adamw": partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY, eps=EPSILON),
}


class Affine(nn.Module):
    """The network: a x + b + c t / 1000, whose gradients anyone can write down."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.7, -0.2, 0.4]))

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        a, b, c = self.values
        return (a * sample + b + c * timestep.reshape(-1, 1, 1, 1) / LEVELS,)


class Pictures:
    """Five pictures, and as many others beginning with another number."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return 5

    def example(self, number: int, stream: Any) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(self.first + number))

    def collate(self, examples: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"pixels": torch.stack(list(examples))}


class Shared(Unconditional):
    """Weighs rows as a batch says."""

    def losses(self, batch: Mapping[str, Any], draw: Draw) -> Losses:
        return self.denoiser(self.networks["unet"], batch["pixels"], draw, shares=batch.get("shares"))


@cache
def levels(kind: str) -> tuple[Noising, np.ndarray, np.ndarray, np.ndarray]:
    """Return the levels as the library has them, and what they are told by, alpha and sigma by hand."""
    if kind == "flow_prediction":
        sigma = np.arange(1, LEVELS + 1) / LEVELS
        return Noising.straight(LEVELS), LEVELS * sigma, 1 - sigma, sigma
    steps = np.linspace(0.00085**0.5, 0.012**0.5, LEVELS) ** 2
    signal = np.cumprod(1 - steps)
    table = torch.cumprod(1 - betas("scaled_linear", LEVELS, start=0.00085, end=0.012).double(), 0).numpy()
    return Noising.of(TableProcess(table)), np.arange(LEVELS), signal**0.5, (1 - signal) ** 0.5


def weight(objective: Objective, alpha: float, sigma: float) -> float:
    """Return the weight of the output's error: 2303.09556, eq. 9 and its forms; 2310.08442, eq. 10."""
    snr = (alpha / sigma) ** 2
    of_data = {None: None, "min_snr": min(snr, objective.gamma), "debiased": snr**0.5}[objective.weighting]
    if of_data is None:
        return 1.0
    return of_data * {"epsilon": 1 / snr, "v_prediction": 1 / (snr + 1), "sample": 1, "flow_prediction": sigma**2}[
        objective.kind
    ]


def row(objective: Objective, x0: np.ndarray, draw: Any, share: float, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss of a row and its gradient."""
    _, times, alphas, sigmas = levels(objective.kind)
    number = int(draw("level", None) * LEVELS)
    alpha, sigma = alphas[number], sigmas[number]
    noise = draw("noise", SHAPE)
    if objective.offset:
        noise = noise + objective.offset * draw("offset", SHAPE[:1])[:, None, None]
    seen = noise + (objective.perturbation * draw("perturbation", SHAPE) if objective.perturbation else 0)
    x = alpha * x0 + sigma * seen
    target = {
        "epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0, "flow_prediction": noise - x0,
    }[objective.kind]  # fmt: skip
    a, b, c = values
    error, bend = a * x + b + c * times[number] / LEVELS - target, objective.bend
    root = np.sqrt(error**2 + bend**2)
    cost, slope = {
        "mse": (error**2, 2 * error),
        "huber": (2 * bend * (root - bend), 2 * bend * error / root),
        "smooth_l1": (2 * (root - bend), 2 * error / root),
    }[objective.loss]
    scale = share * weight(objective, alpha, sigma)
    gradient = np.array([(slope * x).mean(), slope.mean(), slope.mean() * times[number] / LEVELS])
    return scale * cost.mean(), scale * gradient


def by_hand(run: Trainer, objective: Objective, prior: float | None, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss of the first step and its gradient: the mean over its examples."""
    loss, gradient, size = 0.0, np.zeros(3), run.order.step_size

    def drawn(position: int, group: int, what: str, shape: Any) -> Any:
        stream = run.streams.stream(f"{what} {group}" if group else what, position)
        if shape is None:
            return float(torch.rand((), generator=stream, dtype=torch.float64))
        return torch.randn(shape, generator=stream).double().numpy()

    for position in range(size):
        rows = [(Pictures().example(run.order.example(position), None), 1.0)]
        if prior is not None:
            other = int(torch.randint(5, (), generator=run.streams.stream("prior", position)))
            rows.append((Pictures(50).example(other, None), prior))
        for group, (x0, share) in enumerate(rows):
            one, slope = row(objective, x0.double().numpy(), partial(drawn, position, group), share, values)
            loss, gradient = loss + one / size, gradient + slope / size
    return loss, gradient


CASES = [
    *((kind, {"loss": loss}, None) for kind in ("epsilon", "v_prediction", "sample", "flow_prediction")
      for loss in ("mse", "huber", "smooth_l1")),
    *((kind, {"weighting": weighting}, None) for kind in ("epsilon", "v_prediction", "sample")
      for weighting in ("min_snr", "debiased")),
    ("flow_prediction", {"weighting": "min_snr"}, None),
    ("epsilon", {"offset": 0.3}, None),
    ("v_prediction", {"offset": 0.1, "perturbation": 0.2}, None),
    ("sample", {"perturbation": 0.5, "loss": "huber", "bend": 0.4, "weighting": "min_snr", "gamma": 2.0}, None),
    ("epsilon", {}, 0.6),
    ("v_prediction", {"loss": "smooth_l1", "offset": 0.2, "weighting": "min_snr"}, 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "prior"), CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_by_hand(optimizer: str, kind: str, options: dict, prior: float | None, tmp_path) -> None:
    objective = Objective(kind, **options)
    network = Affine()
    begun = network.values.detach().double().numpy()
    task = Shared(network, Denoiser(levels(kind)[0], objective), learning_rate=RATE)
    data = Pictures() if prior is None else Paired(Pictures(), Pictures(50), prior)
    settings = Run(tmp_path, 1, seed=4, batch=2, accumulated=2, optimizer=OPTIMIZERS[optimizer],
                   max_grad_norm=None, checkpoint_every=None)  # fmt: skip
    run = Trainer(task, data, settings)
    losses = []
    run.log.add = lambda step, loss, *rest: losses.append(float(loss))
    run.fit()
    loss, gradient = by_hand(run, objective, prior, begun)
    assert losses == [pytest.approx(loss, rel=2e-6, abs=1e-6)]
    # after one step the corrected means of AdamW are the gradient and its square (1711.05101, algorithm 2)
    wanted = {
        "sgd": begun - RATE * gradient,
        "adamw": begun * (1 - RATE * DECAY) - RATE * gradient / (np.abs(gradient) + EPSILON),
    }[optimizer]
    far = np.abs(network.values.detach().double().numpy() - wanted).max()
    assert far <= 1e-6 * max(1.0, np.abs(wanted).max()), far
