"""A file in its authors' own layout: opened, and its networks built one by one."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..core import garbage
from ..core.errors import ConfigError, WeightsError
from ..core.files import read_json
from ..core.imports import require
from ..core.logging import get_logger
from ..core.report import LoadReport, paired, some
from ..models import loading
from ..models.hollow import Hollow
from ..registry import ROWS
from .bundled import preset, scheduler_options
from .checkpoint import Converted, MemoryFile, open_weights
from .detect import recognise
from .family import CONFIGS, Config, Facts
from .header import Header, matching
from .layouts.clip import canonical, spelling
from .layouts.ldm import GROUPS
from .original_config import options_of
from .rules import Rules
from .saving import described
from .wishes import Wishes, locate, wishes_of

logger = get_logger(__name__)
EMA, EMA_OF = "model_ema.", "model."


class SingleFile:
    """An opened file in its authors' layout; a context manager. Networks are built when they are asked for.

    Attributes:
        what: the file, for messages.
        header: names, shapes, types and metadata.
        family, facts: what the file is, see `weights.detect`.
        places: component -> prefix in this file, how it is written, and its names.
        report: what was applied and ignored so far.
    Raises:
        WeightsError: when the file is damaged or of no known layout.
    """

    def __init__(
        self, path: str | os.PathLike | Mapping[str, Tensor], wishes: Wishes | None = None, *, use_map: bool = True
    ) -> None:
        self.wishes, self.use_map = wishes or Wishes(), use_map
        self.what = "the given state dict" if isinstance(path, Mapping) else os.fspath(path)
        self._stack = ExitStack()
        opened = MemoryFile(path) if isinstance(path, Mapping) else open_weights(path)
        self.source = self._stack.enter_context(opened)
        try:
            self.header = Header.of(self.source.entries, self.source.metadata)
            self.family, facts = recognise(self.header, self.what)
            self.facts = self._corrected(facts)
        except BaseException:
            self._stack.close()
            raise
        self.places = self.family.networks(self.header)
        self.report = LoadReport()

    def __enter__(self) -> SingleFile:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def _corrected(self, facts: Facts) -> Facts:
        """Return the facts with the caller's wishes in place."""
        wishes, stated = self.wishes, self._original.get("facts", {})
        kind = wishes.prediction_type or stated.get("prediction_type")
        size = wishes.image_size or (8 * stated["latent_size"] if "latent_size" in stated else None)
        if kind is not None:
            facts = replace(facts, doubts=tuple(d for d in facts.doubts if "prediction_type" not in d))
            facts = facts.because(f"The caller says that it predicts {kind}.", prediction_type=kind)
            if facts.preset == "sd2-v" and kind == "epsilon":
                facts = replace(facts, preset="sd2", image_size=512)
        return facts if size is None else facts.because(f"The caller says {size} pixels.", image_size=size)

    def voice_doubts(self) -> None:
        """Log what the file does not settle, with the argument that would."""
        for doubt in self.facts.doubts:
            logger.warning("%s: %s", self.what, doubt)

    # Configurations --------------------------------------------------------------------------------------------------

    @cached_property
    def _original(self) -> dict[str, Config]:
        return options_of(self.wishes.original) if self.wishes.original is not None else {}

    @cached_property
    def _preset(self) -> dict[str, Any]:
        return preset(self.facts.preset) if self.facts.preset else {}

    @cached_property
    def _stored(self) -> dict[str, Config]:
        """The configurations that a file written by this library keeps in its metadata."""
        text = self.header.metadata.get(CONFIGS)
        try:
            found = json.loads(text) if text else {}
        except json.JSONDecodeError as error:
            raise WeightsError(f"{self.what} has damaged metadata ({CONFIGS}: {error})") from error
        return found if isinstance(found, dict) else {}

    def given_config(self, component: str, name: str = "config.json") -> Config | None:
        """Return a component's configuration from the caller's folder, or None when that has none."""
        folder = self.wishes.config
        if folder is None:
            return None
        places = [folder / component / name, *([folder / name] if name == "config.json" else [])]
        return next((read_json(path) for path in places if path.is_file()), None)

    def config(self, component: str) -> Config:
        """Return the configuration of a network: the caller's, else what the file keeps, shapes and presets tell."""
        given = self.given_config(component)
        if given is not None:
            return given
        if component in self._stored:
            return dict(self._stored[component])
        place = self.places[component]
        shown = place.layout.infer(self.header.under(place.prefix))
        stated = self._original.get(component, {})
        config = {**shown, **self._sizes(component), **self._preset.get(component, {}), **stated}
        self._check_groups(place.layout.model, config)
        return config

    def _sizes(self, component: str) -> Config:
        """Return the side of the pictures or latents that a network was trained on."""
        size = self.facts.image_size or 512
        return {"vae": {"sample_size": size}, "unet": {"sample_size": size // self.factor}}.get(component, {})

    @property
    def factor(self) -> int:
        """Pixels per latent and side, 8 where the file holds no autoencoder."""
        prefix = self.places["vae"].prefix if "vae" in self.places else ""
        stages = self.header.count(f"{prefix}encoder.down.{{}}")
        return 2 ** (stages - 1) if stages else 8

    def _check_groups(self, model: str, config: Config) -> None:
        widths = config.get("block_out_channels", ())
        odd = [width for width in widths if width % GROUPS]
        if odd:
            raise ConfigError(
                f"{self.what} holds a {model} with layers {odd[0]} channels wide, which {GROUPS} groups of a norm do "
                f"not divide, so its configuration cannot be told from shapes; pass `config`, a folder with config.json"
            )

    def scheduler_config(self, name: str = "scheduler") -> Config | None:
        """Return the configuration of a scheduler, its class as `_class_name`, or None when nothing is known of it."""
        config = self.given_config(name, "scheduler_config.json")
        if config is None:
            known = self._preset.get(name)
            if known is None:
                return None
            # PNDM's table has no place for a signal of zero.
            config = scheduler_options("ddim" if known == "pndm" and self.facts.zero_snr else known)
            if name != "scheduler":
                return config
            config |= {**self._original.get("scheduler", {}), "prediction_type": self.facts.prediction_type}
            if self.facts.zero_snr:
                config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        elif name == "scheduler" and self.wishes.prediction_type is not None:
            config |= {"prediction_type": self.wishes.prediction_type}
        return config

    def options(self, name: str) -> Config:
        """Return what is known of a part that has no weights, such as "tokenizer" or the pipeline's "options"."""
        return dict(self._preset.get(name, {}))

    # Networks --------------------------------------------------------------------------------------------------------

    @garbage.put_off()
    def build(
        self,
        component: str,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | None = None,
        model: type[nn.Module] | None = None,
        overrides: Mapping[str, Any] | None = None,
        check_finite: bool | None = None,
        ignore_mismatched_sizes: bool = False,
    ) -> nn.Module:
        """Build a network of the file in evaluation mode; no more is in memory than the result and one tensor.

        Args:
            dtype: type of floating-point weights, None for the file's own.
            model: a subclass to build in place of the layout's class.
            overrides: options of its configuration to change.
            check_finite, ignore_mismatched_sizes: as in `from_pretrained`.
        Raises:
            WeightsError: when weights are missing, foreign or of another shape.
        """
        held = self.places[component]
        make = builder(model or model_class(held.layout.model), self.config(component), overrides or {})
        with Hollow():
            network = make()
        revive(network)
        config, what = described(network), f"{type(network).__name__} from {self.what}"
        rules, without = held.layout.rules(config), held.unneeded(config)
        wanted = [name for name in held.names if name not in without]
        self.report.ignored |= without
        expected = network.state_dict()
        converted = Converted(
            self.source,
            rules,
            names=wanted,
            known=expected,
            prefix=held.prefix,
            spell=spelling(expected),
            stored=self._averages(wanted) if component == "unet" and self.wishes.extract_ema else None,
            use_map=self.use_map,
        )
        if self.wishes.strict:
            check_names(what, converted, rules, expected, held.prefix)
        report = loading.fill(
            network,
            converted,
            what=what,
            rebuild=make,
            dtype=dtype,
            device=device,
            strict=self.wishes.strict,
            check_finite=check_finite,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        self.report.applied += [name for name in wanted if name not in report.unexpected_keys]
        self.report.renamed |= report.renamed
        self.report.missing_keys += report.missing_keys
        self.report.unexpected_keys += report.unexpected_keys
        return network.eval()

    def _averages(self, names: Iterable[str]) -> dict[str, str]:
        """Return name of a weight -> name of its moving average, which the authors write without dots.

        Raises:
            WeightsError: when the file holds none.
        """
        table = {name: EMA + name.removeprefix(EMA_OF).replace(".", "") for name in names}
        absent = [name for name, average in table.items() if average not in self.header]
        if absent:
            held = "none" if len(absent) == len(table) else f"none of {some(absent)}"
            raise WeightsError(f"extract_ema=True, and {self.what} holds {held} of the UNet's moving averages")
        return table

    def check_rest(self, used: Iterable[str]) -> None:
        """Take note of every name that no component in `used` has, and refuse those that nothing explains.

        Raises:
            WeightsError: for unknown names, unless `strict=False`, which warns.
        """
        used = set(used)
        for component in set(self.places) - used:
            reason = f"the {component}, which was not asked for"
            self.report.ignored |= dict.fromkeys(self.places[component].names, reason)
        here = {name for component in used for name in self.places[component].names}
        rest = [name for name in self.header.shapes if name not in here and name not in self.report.ignored]
        known = matching(rest, self.family.ignored)
        self.report.ignored |= known
        foreign = [name for name in rest if name not in known]
        if not foreign:
            return
        text = f"{self.what} holds {len(foreign)} weights that {self.family.name} has no place for: {some(foreign)}"
        if self.wishes.strict:
            raise WeightsError(f"{text}. If that is wanted: strict=False leaves them out")
        logger.warning("%s; left out", text)
        self.report.unexpected_keys += foreign


def model_class(name: str) -> type[nn.Module]:
    """Return the class that a layout names: "transformers.NAME", or a public network of this library.

    Raises:
        ConfigError: when there is none.
    """
    library, _, short = name.rpartition(".")
    if library:
        return getattr(require(library, why=f"A {short}"), short)
    row = next((row for row in ROWS if row.name == short), None)
    if row is None:
        raise ConfigError(f"the file holds a {short}, which this library does not have; pass the component yourself")
    return getattr(importlib.import_module(f"{__name__.partition('.')[0]}.{row.module}"), short)


def builder(model: Any, config: Config, overrides: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Return a function that builds a network of this library or of transformers from its configuration."""
    if hasattr(model, "load_config"):
        return lambda: model.from_config(config, **overrides)
    options = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    return lambda: model(model.config_class(**{**options, **overrides}))


def check_names(what: str, converted: Converted, rules: Rules, expected: Iterable[str], prefix: str) -> None:
    """Raise WeightsError, in the file's own words, for weights that are missing or foreign, with the nearest names."""
    expected = list(expected)
    absent = [name for name in expected if name not in converted.shapes]
    if not absent and not converted.foreign:
        return
    moves = rules.inverse.plan(canonical(rules, expected)).moves
    authors = {source: prefix + move.targets[0] for move in moves for source in move.sources}
    missing = list(dict.fromkeys(authors.get(name, name) for name in canonical(rules, absent)))
    found = [f"lacks {some(missing)}"] if missing else []
    if converted.foreign:
        found.append(f"does not know {some(paired(converted.foreign, list(authors.values())))}")
    cure = "strict=False initialises missing weights afresh and leaves out foreign ones"
    raise WeightsError(f"{what} {' and '.join(found)}. If that is wanted: {cure}")


def revive(network: nn.Module) -> None:
    """Give the tables of counted positions that checkpoints do not hold their values, in a network built without."""
    for module in network.modules():
        for name in module._non_persistent_buffers_set:
            table = module._buffers.get(name)
            if table is not None and table.is_meta and name == "position_ids":
                module._buffers[name] = torch.arange(table.shape[-1], device="cpu").expand(table.shape).clone()


def load_model(
    model: type[nn.Module],
    source: str | os.PathLike | Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    hub: Mapping[str, Any],
    overrides: Mapping[str, Any],
    use_map: bool = True,
    check_finite: bool | None = None,
    ignore_mismatched_sizes: bool = False,
    **wishes: Any,
) -> Any:
    """Return one network of a single file; see `FromOriginalModelMixin.from_single_file`."""
    path = source if isinstance(source, Mapping) else locate(source, **hub)
    with SingleFile(path, wishes_of(hub=hub, **wishes), use_map=use_map) as file:
        file.voice_doubts()
        return file.build(
            find_component(file, model),
            dtype=dtype,
            device=device,
            model=model,
            overrides=overrides,
            check_finite=check_finite,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )


def find_component(file: SingleFile, model: type[nn.Module]) -> str:
    """Return the component of a file that is of a class.

    Raises:
        WeightsError: when the file holds none, naming what it holds.
    """
    names = {base.__name__ for base in model.__mro__}
    for component, place in file.places.items():
        if place.layout.model.rpartition(".")[2] in names:
            return component
    held = ", ".join(f"{place.layout.model.rpartition('.')[2]} ({name})" for name, place in file.places.items())
    raise WeightsError(f"{file.what} holds no {model.__name__}; it holds: {held or 'nothing that is known here'}")
