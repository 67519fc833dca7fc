"""Solvers: pure functions from a grid of levels to rows of coefficients, one file per idea."""

from __future__ import annotations

from .adams_bashforth import PseudoNumerical
from .dpm_multistep import ALGORITHMS, DPMMultistep
from .first_order import Churn, FirstOrder, Posterior

__all__ = ["ALGORITHMS", "Churn", "DPMMultistep", "FirstOrder", "Posterior", "PseudoNumerical"]
