"""Solvers: pure functions from a grid of levels to rows of coefficients, one file per idea."""

from __future__ import annotations

from .adams_bashforth import AdamsBashforth, PseudoNumerical
from .climb import Resampling, climb, climbing, jumps, kept, rise
from .consistency import Renoising, Trajectory
from .dpm_multistep import ALGORITHMS, DPMMultistep
from .dpm_singlestep import DPMSinglestep
from .first_order import Churn, FirstOrder, Posterior
from .linear_multistep import LinearMultistep
from .restart import Churned, Restart
from .sa import SASolver
from .score_sde import EulerMaruyama, ReverseDiffusion
from .two_stage import BrownianMidpoint, Heun, Midpoint
from .unipc import UniPC

__all__ = [
    "ALGORITHMS",
    "AdamsBashforth",
    "BrownianMidpoint",
    "Churn",
    "Churned",
    "DPMMultistep",
    "DPMSinglestep",
    "EulerMaruyama",
    "FirstOrder",
    "Heun",
    "LinearMultistep",
    "Midpoint",
    "Posterior",
    "PseudoNumerical",
    "Renoising",
    "Resampling",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "Trajectory",
    "UniPC",
    "climb",
    "climbing",
    "jumps",
    "kept",
    "rise",
]
