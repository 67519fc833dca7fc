"""One step as a row of numbers, and the run that follows rows: the only arithmetic of sampling that touches tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch

from ..core.errors import InputError
from ..core.rng import normal, seeded
from .prediction import Pair, Prediction, Reading, mix
from .process import Level

Noise = Callable[[], torch.Tensor]
LEAST_SCALE = 1e-3
"""The least coefficient of x that others are divided by."""


@dataclass(frozen=True, slots=True)
class Row:
    """One network call and the linear step that follows it.

        x' = sample * x + saved * x_saved + sum_j outputs[j] * m_j + direction * eps + data * x_0 + noise * z

    m_0 is the present prediction, m_1 ... the remembered ones, newest first, each x_0 or eps as the solver wants; eps
    is the network's own noise estimate, free of bounds; x_0 is its estimate of the data, for solvers that want eps, at
    levels where x and eps do not give it; z is standard normal.

    Attributes:
        level: where the network is asked.
        after: where x' sits.
        noise: None draws nothing; 0.0 draws (to keep a shared stream in step) and adds nothing.
        keep: which of (m_0, m_1, ...) are remembered.
        save: whether x is saved, before the step.
        lift: coefficient of noise that is added to x before the prediction is read (churn); None draws nothing.
        read: the level at which the output is read, where it is not `level`.
        spread: log variances between which a learned variance interpolates; then `noise` only says whether to draw.
        snr: the row is a step of Langevin dynamics at this signal-to-noise ratio (`langevin`) instead.
    """

    level: Level
    after: Level
    sample: float = 0.0
    outputs: tuple[float, ...] = (0.0,)
    direction: float = 0.0
    saved: float = 0.0
    noise: float | None = None
    keep: tuple[int, ...] = ()
    save: bool = False
    lift: float | None = None
    read: Level | None = None
    spread: tuple[float, float] | None = None
    snr: float | None = None
    data: float = 0.0


class Move:
    """A row with all of its step that is known before it, for one kind of prediction.

    Attributes:
        reading: how the output is read.
        wants: which prediction the row combines.
        linear: the coefficients of (x, output) in x' where nothing but these two enters, or None. Worked out in
            float64, they lose nothing to a detour over an x_0 that is much smaller than x.
        pair: the coefficients of (m_0, x) in x' where nothing but these two enters, or None.
        clipped: where m_0 in such a pair is x_0 that is clipped alone, a way to x' without x_0 itself; see `Clipped`.
        draws: whether it draws noise.
    """

    __slots__ = ("clipped", "draws", "linear", "pair", "reading", "row", "wants")

    def __init__(self, row: Row, prediction: Prediction, *, wants: Literal["x0", "eps"]) -> None:
        level = row.read or row.level
        if level.alpha == 0:
            prediction.check(level)
        self.row, self.reading, self.wants = row, prediction.at(level), wants
        self.draws = row.noise is not None or row.lift is not None
        curved = prediction.clipped or (prediction.bounded and wants == "eps")
        self.linear = None if curved else linear(row, self.reading, wants=wants)
        alone = not (row.saved or row.direction or row.data or any(row.outputs[1:]))
        self.pair = (row.outputs[0], row.sample) if alone and row.outputs[0] else None
        self.clipped = None
        if self.pair is not None and wants == "x0" and not row.keep:
            self.clipped = Clipped.of(self.pair, self.reading)


class Clipped(NamedTuple):
    """x' of a clipped x_0, by one multiplication less: x_0 / scale is x + share * output within +-bound.

    Attributes:
        scale: the coefficient of x in x_0.
        share: that of the output, over `scale`.
        bound: of x_0 / scale.
        pair: the coefficients of (x_0 / scale, x) in x'.
    """

    scale: float
    share: float
    bound: float
    pair: Pair

    @classmethod
    def of(cls, pair: Pair, reading: Reading) -> Clipped | None:
        """Return it for the coefficients of (x_0, x) in x', or None where x_0 is read otherwise."""
        (scale, share), prediction = reading.of_data, reading.prediction
        more = prediction.threshold is not None or prediction.boundary is not None
        if prediction.clip is None or more or abs(scale) < LEAST_SCALE:
            return None
        return cls(scale, share / scale, prediction.clip / abs(scale), (pair[0] * scale, pair[1]))


def linear(row: Row, reading: Reading, *, wants: Literal["x0", "eps"]) -> tuple[float, float] | None:
    """Return the coefficients of (x, output) in x' by an unbounded reading, None where x' holds anything else.

    The output is never handed on as it is, so x' is a tensor of its own.
    """
    if row.keep or row.saved or row.snr is not None or any(row.outputs[1:]):
        return None
    present = reading.of_data if wants == "x0" else reading.of_noise
    shares = [(row.outputs[0], present), (row.direction, reading.of_noise), (row.data, reading.of_data)]
    of_x = row.sample + sum(c * pair[0] for c, pair in shares if c)
    of_output = sum(c * pair[1] for c, pair in shares if c)
    of_x = 1.0 if math.isclose(of_x, 1.0, rel_tol=1e-14) else of_x
    return (of_x, of_output) if of_output and of_x else None


class Run:
    """The state of a run: past predictions, newest first, and a saved sample; half precision is stepped in float32.

    Args:
        moves: what the run follows.
        noise: returns standard normal draws in the sample's shape; needed by stochastic rows.
        seed: seed of the noise, which then is drawn here, in `dtype` or that of the sample; None asks `noise`.
    """

    def __init__(
        self,
        moves: Sequence[Move],
        noise: Noise | None = None,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.moves = moves
        self.noise = noise
        self.stream = None if seed is None else seeded(seed)
        self.dtype = dtype
        self.history: tuple[torch.Tensor, ...] = ()
        self.saved: torch.Tensor | None = None
        self.mean: torch.Tensor | None = None
        """The last sample without its fresh noise."""
        self._read: Callable[[], torch.Tensor] | None = None
        self._data: torch.Tensor | None = None

    @property
    def x0(self) -> torch.Tensor | None:
        """The estimate of the data at the last network call, as precise as the arithmetic; None before the first."""
        if self._data is None and self._read is not None:
            self._data = self._read()
        return self._data

    def advance(self, x: torch.Tensor, output: torch.Tensor, index: int) -> torch.Tensor:
        """Return the sample after step `index`, given the sample before it and the network's output."""
        return self.apply(self.moves[index], x, output, self.noise)

    def apply(self, move: Move, x: torch.Tensor, output: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return the sample after `move`; remembers what later ones need."""
        dtype, row, reading, variance = x.dtype, move.row, move.reading, None
        x, output = widen(x), output if move.linear else widen(output)  # an addition widens the output by itself
        if reading.prediction.variance is not None:
            output, variance = reading.prediction.split(output, x)
        if self.stream is not None:
            kind = self.dtype or dtype
            noise = partial(normal, x.shape, generator=self.stream, device=x.device, dtype=kind)
        if row.lift is not None:
            x = torch.add(x, draw(noise), alpha=row.lift)
        self._read, self._data = partial(read_data, reading, x, output), None
        if row.snr is not None:
            x = langevin(x, reading.noise(x, output) / -reading.level.sigma, draw(noise), row.snr)
            return cast(x, dtype)
        if row.save:
            self.saved = x
        if move.linear is not None:
            self.history = ()
            x = mix(move.linear, x, output)
        else:
            x = self.combine(move, x, output)
        self.mean = x
        if row.noise is not None:
            z, deviation = draw(noise), deviation_of(move, variance)
            if isinstance(deviation, torch.Tensor):
                x = x + deviation * z
            elif deviation:
                x = torch.add(x, z, alpha=deviation)
        return cast(x, dtype)

    def combine(self, move: Move, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the sum of a row over x, what is remembered and what is read; remember what the row keeps."""
        row, reading = move.row, move.reading
        if move.clipped is not None:
            scale, share, bound, pair = move.clipped
            part = torch.add(x, output, alpha=share).clamp(-bound, bound)
            self.history, self._read = (), partial(torch.mul, part, scale)
            return summed(pair, part, x)
        if move.wants == "x0":
            present = self._data = reading.data(x, output)
        else:
            present = reading.bounded_noise(x, output)
        models = (present, *self.history)
        if len(row.outputs) > len(models):
            raise InputError(
                f"This step combines {len(row.outputs)} predictions, but {len(models)} are known; the steps before it "
                "kept fewer. Give every step of a run the same options."
            )
        self.history = tuple([models[k] for k in row.keep])
        if move.pair is not None:
            return summed(move.pair, present, x)
        terms = [*zip(row.outputs, models, strict=False), (row.sample, x), (row.saved, self.saved)]
        if row.direction:
            terms.append((row.direction, reading.noise(x, output)))
        if row.data:
            terms.append((row.data, reading.data(x, output)))
        return total(terms)


def deviation_of(move: Move, variance: torch.Tensor | None) -> float | torch.Tensor:
    """Return the standard deviation of the row's noise, a tensor when the network predicts the variance.

    "learned_range" is Nichol & Dhariwal 2021 (2102.09672), eq. 15, with v = (output + 1) / 2.
    """
    row = move.row
    if not row.noise or row.spread is None:
        return row.noise or 0.0
    if variance is None:
        raise InputError("The variance is to be learned, but the network's output has no channels for it.")
    if move.reading.prediction.variance == "learned":
        return variance.clamp(min=1e-20).sqrt()
    low, high = row.spread
    return torch.exp((variance + 1.0) * (0.25 * (high - low)) + 0.5 * low)


def read_data(reading: Reading, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the estimate of the data, as precise as the arithmetic."""
    return reading.data(x, widen(output))


def widen(x: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `x` in `dtype`; as it is, and without a call, where it is that already."""
    return x if x.dtype is dtype else x.to(dtype)


def draw(noise: Noise | None) -> torch.Tensor:
    """Call `noise`, widened; raise InputError when there is none."""
    if noise is None:
        raise InputError("This sampler draws noise at every step; pass `noise`, a callable that returns it.")
    return widen(noise())


def summed(pair: Pair, present: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return pair[0] * present + pair[1] * x, a tensor of its own; the first coefficient is not 0."""
    return mix(pair, present, x) if pair[1] else pair[0] * present


def total(terms: list[tuple[float, torch.Tensor | None]]) -> torch.Tensor:
    """Return the sum of coefficient * tensor, leaving out zero coefficients."""
    (first, tensor), *rest = [(c, t) for c, t in terms if c != 0.0] or [(0.0, terms[0][1])]
    result: torch.Tensor = first * tensor  # type: ignore[operator, assignment]
    for coefficient, tensor in rest:
        result = torch.add(result, tensor, alpha=coefficient)  # type: ignore[arg-type]
    return result


def langevin_share(score: torch.Tensor, noise: torch.Tensor, snr: float) -> torch.Tensor:
    """Return the share 2 * snr * |noise| / |score| of the noise in `langevin` for each image, shape (batch, 1, ...).

    The step size is half its square.
    """
    image = tuple(range(1, score.dim()))
    length, wanted = (torch.linalg.vector_norm(v, dim=image, keepdim=True) for v in (score, noise))
    return wanted / length * (2.0 * snr)


def langevin(x: torch.Tensor, score: torch.Tensor, noise: torch.Tensor, snr: float) -> torch.Tensor:
    """Return x after one step of Langevin dynamics at its level: Song et al. 2021 (2011.13456), algorithm 4, corrector.

    Args:
        score: gradient of the log density at x, of the same shape.
        noise: standard normal.
        snr: wanted ratio of the norms of the step along the score and of the noise.
    """
    share = langevin_share(score, noise, snr)
    return torch.addcmul(torch.addcmul(x, score, share.square(), value=0.5), noise, share)
