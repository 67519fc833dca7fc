"""What `langevin schedulers` does: finds the sampler that is meant, and prints what the laboratory says of it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import langevin

from .. import registry
from ..core.config import keywords, options_of
from ..core.errors import InputError, LangevinError, check_choice, check_known
from ..diffusion.prediction import KINDS
from ..diffusion.rows import Row
from ..diffusion.table import Plan
from ..evaluation.driving import Bench
from ..evaluation.samplers import check
from ..schedulers.base import SchedulerMixin
from .output import free, writing
from .request import find_scheduler

GIVEN = {
    *("num_inference_steps", "timesteps", "sigmas", "device"),
    *("model_output", "timestep", "sample", "generator", "return_dict"),
}
"""What the laboratory itself says to a scheduler's `set_timesteps` and `step`."""


def parse(options: Sequence[str]) -> dict[str, Any]:
    """Return key=value words as a dictionary; a value is a Python or JSON literal, or else a word.

    Raises:
        InputError: for a word without "=".
    """
    found = {}
    for word in options:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--option is {word!r}; write key=value, for example --option use_karras_sigmas=true.")
        found[key] = literal(value)
    return found


def literal(text: str) -> Any:
    """Return the value that a text stands for: a JSON or Python literal, or the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def find(name: str, options: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """Return the scheduler that `name` means, built with those `options` that it takes, and the other options.

    Args:
        name: a public class or its short name; a configuration file or its folder; or "file.py:ClassName".

    Raises:
        InputError: with the nearest name, or when a file does not hold what is asked.
    """
    given = parse(options)
    cls, config = source(name)
    own = options_of(cls)
    building = {key: value for key, value in given.items() if key in own}
    try:
        scheduler = cls(**building) if config is None else cls.from_config(config, **building)  # type: ignore[attr-defined]
    except TypeError as error:
        raise InputError(f"{cls.__name__} cannot be built ({error}); give it what it needs with --option.") from error
    rest = {key: value for key, value in given.items() if key not in building}
    taken = {*own, *getattr(cls, "step_options", ()), *getattr(cls, "grid_options", ())}
    for call in filter(None, (getattr(cls, "set_timesteps", None), getattr(cls, "step", None))):
        taken |= keywords(call).keys() - GIVEN
    check_known(cls.__name__, rest, taken)
    return scheduler, rest


def source(name: str) -> tuple[type, Mapping[str, Any] | None]:
    """Return the class that `name` means, and the configuration where it names one."""
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        return load_class(Path(file), attribute), None
    path = Path(name)
    if path.suffix == ".py":
        raise InputError(f"{name} is a file; say which class of it: {name}:ClassName.")
    if path.suffix == ".json" or path.exists():
        config = SchedulerMixin.load_config(name)
        written = str(config.get("_class_name", ""))
        if not written:
            raise InputError(f"{name} names no class (`_class_name`), so it is no scheduler's configuration.")
        return getattr(langevin, find_scheduler(written, what=f"_class_name in {name}")), config
    return getattr(langevin, find_scheduler(name, what="The scheduler")), None


def load_class(path: Path, name: str) -> type:
    """Import a Python file, which runs it, and return a class of it.

    Raises:
        InputError: when there is no such file or class, or the file fails.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} cannot be run ({what}); `python {path}` says where.") from error
    classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
    check_choice(f"The class in {path}", name, classes)
    return getattr(module, name)


# ---- list ------------------------------------------------------------------------------------------------------------


def overview() -> str:
    """Return the table of all samplers."""
    rows: list[tuple[str, ...]] = [("name", "space", "reads", "calls", "noise", "configuration shared with")]
    rows += [described(row.name) for row in registry.SCHEDULERS if row.name.endswith("Scheduler")]
    return "\n".join(aligned(rows))


def described(name: str) -> tuple[str, ...]:
    """Return the line of one sampler, with its default options."""
    cls = getattr(langevin, name)
    try:
        scheduler = cls()
        plan = scheduler.plan(10)
        schedule = Bench(scheduler).schedule(10)
    except (AttributeError, TypeError, LangevinError, NotImplementedError):
        return name, "-", "-", "-", "-", "has a loop of its own"
    reads = "preconditioned" if plan.prediction.scaling else ", ".join(readable(cls)) or plan.prediction.kind
    options = [option for option in ("eta", "s_churn", "s_noise") if option in scheduler.step_options]
    noise = "always" if plan.stochastic else ", ".join(options) or "no"
    others = len(scheduler.compatibles) - 1
    return name, schedule.space, reads, str(scheduler.order), noise, f"{others} more" if others else "none"


def readable(cls: type) -> list[str]:
    """Return the kinds of output that a class can be configured for."""
    if "prediction_type" not in options_of(cls):
        return []
    found = []
    for kind in KINDS:
        try:
            cls(prediction_type=kind).plan(5)
        except LangevinError:
            continue
        found.append(kind.removesuffix("_prediction"))
    return found


def aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows of text as columns of equal width."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


# ---- show, check, plot -----------------------------------------------------------------------------------------------


def table(name: str, steps: int, options: Sequence[str]) -> str:
    """Return the levels and the rows of a run."""
    scheduler, rest = find(name, options)
    bench = Bench(scheduler, options=rest)
    schedule = bench.schedule(steps)
    lines = [f"{bench.name}, {steps} steps: {schedule.space} levels read from {schedule.source}", ""]
    if not bench.has_table:
        cells: list[tuple[str, ...]] = [("call", "timestep", "alpha", "sigma", "lambda", "input x")]
        for k, call in enumerate(schedule.calls):
            level = call.level
            cells.append((str(k), *map(compact, (call.timestep, level.alpha, level.sigma, level.lam, call.in_scale))))
        return "\n".join([*lines, *aligned(cells)])
    plan = bench.plan(steps)
    past = max(len(row.outputs) for row in plan.rows)
    first = ("call", "timestep", "alpha", "sigma", "lambda", "->sigma", "c x", "c saved")
    head = (*first, *(f"c m{j}" for j in range(past)), "c eps", "c x0", "noise", "lift")
    cells = [head, *(coefficients(k, row, past) for k, row in enumerate(plan.rows))]
    keep = [k for k in range(len(head)) if k < 7 or any(row[k] not in ("0", "-") for row in cells[1:])]
    lines += aligned([tuple(row[k] for k in keep) for row in cells])
    return "\n".join([*lines, "", *legend(plan)])


def coefficients(index: int, row: Row, past: int) -> tuple[str, ...]:
    """Return the cells of one row of a table."""
    level = row.level
    where = (level.t, level.alpha, level.sigma, level.lam, row.after.sigma, row.sample, row.saved)
    weights = [*row.outputs, *(0.0 for _ in range(past - len(row.outputs))), row.direction, row.data, row.noise]
    weights.append(row.lift)
    return (str(index), *(("-" if v is None else compact(v)) for v in (*where, *weights)))


def compact(value: float) -> str:
    """Return a number in few characters."""
    return f"{value:.5g}"


def legend(plan: Plan) -> Iterator[str]:
    """Yield what the columns mean."""
    reads = {"x0": "x0", "eps": "the noise eps"}[plan.solver.wants]
    yield f"x' = (c x) x + sum_j (c mj) mj + noise z; mj are readings of {reads}, newest first."
    yield f"The network's output is read as {'preconditioned' if plan.prediction.scaling else plan.prediction.kind}."


def examine(name: str, steps: int, options: Sequence[str], *, space: str | None, as_json: bool) -> tuple[str, bool]:
    """Return the report as text or JSON, and whether it holds no fault."""
    scheduler, rest = find(name, options)
    report = check(scheduler, steps=steps, options=rest, space=space)
    return (json.dumps(report.to_dict(), indent=2) if as_json else str(report)), report.ok


def draw(names: Sequence[str], steps: int, options: Sequence[str], output: str) -> Path:
    """Draw the samplers into one picture and return its path.

    Options that one of several samplers does not take are an error, as they are for one alone.
    """
    from ..evaluation.sampler_plots import plot

    path = Path(output).expanduser()
    if path.suffix.lower() != ".png":
        raise InputError(f"--output {output}: plots are written as PNG; use {path.stem}.png.")
    benches = []
    for name in names:
        scheduler, rest = find(name, options)
        benches.append(Bench(scheduler, options=rest))
    with writing(path, "choose another --output"):
        return plot(benches, free(path), steps=steps)
