"""The mathematics of diffusion: processes, predictions, grids, solvers as tables, guidance and the sampling loop.

Two formulas carry everything. A sample at a level is x = alpha * x_0 + sigma * eps. A step of any solver is a row,
x' = c * x + sum_j c_j * m_j + s * z, over the present and past predictions m_j (x_0 or eps) and fresh noise z.
"""

from __future__ import annotations

from .grid import Ask, Grid
from .guidance import CFG, Branch, Guidance, guided
from .prediction import Prediction
from .process import Level, TableProcess, Time, noised
from .rows import Row, Run
from .sampling import Stop, sample
from .table import Plan, Solver, Step

__all__ = [
    "CFG",
    "Ask",
    "Branch",
    "Grid",
    "Guidance",
    "Level",
    "Plan",
    "Prediction",
    "Row",
    "Run",
    "Solver",
    "Step",
    "Stop",
    "TableProcess",
    "Time",
    "guided",
    "noised",
    "sample",
]
