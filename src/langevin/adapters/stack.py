"""Adapters on a network: added, weighted, combined, fused into its weights and removed, each with an exact undo.

An adapter is a delta for each layer that it changes. A delta is a child module of its layer, and one forward hook per
layer adds what the active deltas give. The network's state dict stays what it was without adapters, `.to` moves the
deltas with their layers, gradients reach their parameters, and a compiled network stays one graph. Weights are scalar
tensors, so that changing them, or exchanging an adapter for another of the same shapes, compiles nothing anew.

A fused adapter is part of the layer's weight: a new tensor, while the original one is kept aside. Undoing is putting
the original back, which is exact in every dtype and in every order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NonFiniteError, WeightsError, check_known
from ..core.report import some
from ..core.threads import each
from ..nn.compiled import bare
from ..weights.dialects.parts import Parts
from .attaching import attach, delta_in, detach, found_layers, holder, key_of
from .deltas import Delta
from .fitting import build
from .folding import check_finite, folded, summary
from .weighing import Weight, finite, weighed

STATE = "_adapter_state"
"""Name in the network's `__dict__` of what the stack remembers."""
lock = threading.RLock()


@dataclass
class Record:
    """What the stack remembers of an adapter: its layers, and how it was made.

    Attributes:
        origin: what whoever added it remembers with it.
        fused: path -> weight with which it is part of the layer's weights.
        idle: layers of a reserved adapter that the present one does not change.
    """

    layers: dict[str, nn.Module]
    weights: dict[str, float]
    options: dict[str, Any]
    spec: Weight
    origin: Any = None
    fused: dict[str, float] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)


@dataclass
class State:
    """What the stack of one network remembers; empty states are not kept."""

    records: dict[str, Record] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    enabled: bool = True
    factor: float = 1.0
    runs: int = 0


class Stack:
    """The adapters of one network. Stacks of the same network share everything; it can be made anew at any time.

    A change either happens completely or raises and leaves the network as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = bare(model)

    # ---- what there is ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What is remembered, which an empty stack does not store in the network."""
        return self.model.__dict__.get(STATE) or State()

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they were added."""
        return list(self.state.records)

    @property
    def active(self) -> list[str]:
        """The adapters that take part, in the order of `set`; while the stack is disabled they have no effect."""
        return list(self.state.active)

    @property
    def fused(self) -> list[str]:
        """The adapters that are part of the weights, in the order in which they were added."""
        return list(self._fused())

    @property
    def enabled(self) -> bool:
        """Whether active and fused adapters take effect."""
        return self.state.enabled

    def layers(self, name: str) -> list[str]:
        """Return the paths of the layers that an adapter changes."""
        record = self.record(name)
        return [path for path in record.layers if path not in record.idle]

    def weights(self, name: str) -> dict[str, float]:
        """Return path -> weight of an adapter."""
        weights = self.record(name).weights
        return {path: weights[path] for path in self.layers(name)}

    def delta(self, name: str, path: str) -> Delta:
        """Return the module that an adapter has in a layer."""
        return delta_in(self.record(name).layers[path], name)

    def parts(self, name: str) -> dict[str, Parts]:
        """Return what a file of an adapter holds: path -> the present tensors, in the shapes in which they came."""
        return {path: self.delta(name, path).parts() for path in self.layers(name)}

    def record(self, name: str) -> Record:
        """Return what is remembered of an adapter, or raise ConfigError if there is none of that name."""
        check_known(f"the stack of adapters of {type(self.model).__name__}", [name], self.names)
        return self.state.records[name]

    # ---- coming and going -------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        parts: Mapping[str, Parts],
        *,
        scale: Weight = 1.0,
        dtype: torch.dtype | None = None,
        trainable: bool = False,
        target_rank: int | None = None,
    ) -> None:
        """Attach an adapter and make it active beside those that are.

        Args:
            name: by which it is called from now on.
            parts: path of the layer -> the tensors for it.
            scale: its weight, see `Weight`.
            dtype, trainable, target_rank: see `fitting.build`.

        Raises:
            ConfigError: the name is taken, a path names no layer, or tensors do not fit.
        """
        with lock:
            if not name or name in self.names:
                raise ConfigError(f"An adapter needs a name that is not in use, unlike {name!r}; or remove that first.")
            options = {"dtype": dtype, "trainable": trainable, "target_rank": target_rank}
            layers, deltas = self._built(parts, options)
            record = Record(layers, weighed(name, scale, layers), options, scale)
            state = self.model.__dict__.setdefault(STATE, State())
            for path, delta in deltas.items():
                attach(layers[path], name, delta)
            state.records[name] = record
            state.active.append(name)
            self._tell(name)

    def _built(
        self, parts: Mapping[str, Parts], options: Mapping[str, Any]
    ) -> tuple[dict[str, nn.Module], dict[str, Delta]]:
        """Return layers and deltas by path, attached to nothing."""
        if not parts:
            raise ConfigError("The adapter changes no layer: there is nothing to add.")
        layers = found_layers(self.model, parts)
        return layers, {path: build(part, layers[path], path=path, **options) for path, part in parts.items()}

    def remove(self, name: str) -> None:
        """Take an adapter away, out of the weights too if it is fused. What it leaves is bit-equal to what it found."""
        with lock:
            record = self.record(name)
            if record.fused:
                self.unfuse([name])
            state = self.state
            del state.records[name]
            state.active = [other for other in state.active if other != name]
            for layer in record.layers.values():
                detach(layer, name)
            if not state.records and not state.runs:
                del self.model.__dict__[STATE]

    def swap(self, name: str, parts: Mapping[str, Parts]) -> None:
        """Exchange an adapter for another under its name, with the same weights.

        Tensors of the same shapes take the place of the present ones, which compiles nothing anew; `target_rank` of
        `add` makes room for that. Layers that the new adapter does not change then keep an idle delta, and the new
        tensors are converted to the dtype of the present ones. An adapter that is trained keeps its parameters, which
        an optimizer knows.

        Raises:
            ConfigError: the tensors do not fit.
            NonFiniteError: the adapter is fused, and a weight would not be finite with the new one.
        """
        with lock:
            record = self.record(name)
            reserved = record.options["target_rank"] is not None
            stays = reserved or record.options["trainable"]
            layers, deltas = self._built(parts, record.options)
            weights = weighed(name, record.spec, {**record.layers, **layers} if reserved else layers)
            fused, before = record.fused, {}
            if fused:
                before = copied(self.parts(name))
                self.unfuse([name])
            for path, delta in deltas.items():
                old = record.layers.get(path)
                if old is None or not (stays and delta_in(old, name).take(delta)):
                    attach(layers[path], name, delta)
            for path in [path for path in record.layers if path not in parts]:
                if reserved and delta_in(record.layers[path], name).clear():
                    layers[path] = record.layers[path]
                else:
                    detach(record.layers[path], name)
            record.idle = {path for path in layers if path not in parts}
            record.layers, record.weights = layers, weights
            self._tell(name)
            if fused:
                try:
                    self._fuse({name: {path: fused.get(path, weights[path]) for path in parts}}, safe=True)
                except NonFiniteError:
                    self.swap(name, before)
                    self._fuse({name: fused}, safe=False)
                    raise

    # ---- weights ----------------------------------------------------------------------------------------------------

    def set(self, weights: Mapping[str, Weight]) -> None:
        """Make these adapters the active ones, with these weights; several add up.

        A fused adapter is part of the layers' weights with the weight that it had, until `unfuse`.
        """
        with lock:
            made = {name: weighed(name, weight, self.record(name).layers) for name, weight in weights.items()}
            for name, paths in made.items():
                fused = self.record(name).fused
                if any(fused.get(path, paths[path]) != paths[path] for path in paths):
                    raise ConfigError(f"The adapter {name!r} is fused with other weights than these: unfuse it first.")
            for name, paths in made.items():
                record = self.record(name)
                record.weights, record.spec = paths, weights[name]
            self.state.active = list(made)
            self._tell()

    def disable(self) -> None:
        """Let no adapter take effect, also none that is fused, until `enable`."""
        self._enable(False)

    def enable(self) -> None:
        """Let the active and the fused adapters take effect again."""
        self._enable(True)

    def _enable(self, enabled: bool) -> None:
        with lock:
            state = self.state
            if state.enabled != enabled and state.records:
                fused = self._fused()
                self._fold(fused if enabled else {}, self._paths(fused), safe=False)
                state.enabled = enabled
                self._tell()

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Multiply the weights of the active adapters by a factor for the duration of a run.

        Raises:
            ConfigError: another run with another factor is going on, in this thread or another; or every active adapter
                is fused, where the factor can have no effect.
        """
        factor = finite(factor, "the factor of the adapters' weights")
        with lock:
            state = self.model.__dict__.setdefault(STATE, State()) if self.names else State()
            if factor != 1 and self.fused and not set(state.active) - set(self.fused):
                raise ConfigError("The adapters are fused with fixed weights: unfuse them, or leave out the scale.")
            if state.runs and state.factor != factor:
                raise ConfigError(
                    f"A run with the adapters' weights times {state.factor:g} is going on in this network; one with "
                    f"{factor:g} has to wait for its end, or needs a copy of the network."
                )
            state.runs += 1
            if state.factor != factor:
                state.factor = factor
                self._tell()
        try:
            yield
        finally:
            with lock:
                state.runs -= 1
                if not state.runs:
                    if state.factor != 1.0:
                        state.factor = 1.0
                        self._tell()
                    if not state.records:
                        self.model.__dict__.pop(STATE, None)

    def _tell(self, *names: str) -> None:
        """Let the layers of these adapters, or of all, know which deltas are live and what they weigh."""
        state = self.state
        live = [name for name in state.active if state.enabled and not state.records[name].fused]
        keys = [(key_of(name), state.records[name].weights) for name in live]
        for path, layer in self._paths(names or state.records).items():
            holder(layer).tell({key: weights[path] * state.factor for key, weights in keys if path in weights})

    def _paths(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """Return the layers of several adapters by path."""
        return {path: layer for name in names for path, layer in self.state.records[name].layers.items()}

    # ---- fusing -----------------------------------------------------------------------------------------------------

    def fuse(self, names: Sequence[str] | None = None, *, scale: float = 1.0, safe: bool = True) -> None:
        """Make adapters part of the layers' weights, which then cost nothing at run time.

        Each weight becomes W + sum of weight times D, summed in float32 (or wider) and rounded once. The original
        tensors are kept for `unfuse`.

        Args:
            names: of adapters that are not fused yet; the active ones by default.
            scale: multiplies their weights.
            safe: look for values that are not finite before anything changes.

        Raises:
            ConfigError: nothing to fuse, already fused, the stack is disabled, or a layer is quantised.
            NonFiniteError: a weight would not be finite; the network is as it was.
        """
        with lock:
            scale = finite(scale, "the scale of fused adapters")
            chosen = [n for n in self.active if n not in self.fused] if names is None else list(names)
            again = [name for name in chosen if self.record(name).fused]
            if again or not chosen:
                what = f"{some(again)} already fused" if again else "No active adapter is left"
                raise ConfigError(f"Nothing to fuse: {what}. Add or activate one, or unfuse first.")
            if not self.enabled:
                raise ConfigError("The adapters are disabled: enable them before fusing.")
            self._fuse({n: {p: w * scale for p, w in self.weights(n).items()} for n in chosen}, safe=safe)

    def _fuse(self, chosen: Mapping[str, Mapping[str, float]], *, safe: bool) -> None:
        """Fuse adapters with these weights beside those that are fused."""
        records = self.state.records
        if self.enabled:
            self._fold({**self._fused(), **chosen}, self._paths(chosen), safe=safe)
        for name, weights in chosen.items():
            records[name].fused = dict(weights)
        self._tell()

    def _fused(self) -> dict[str, dict[str, float]]:
        """Return the weights with which adapters are fused."""
        return {name: record.fused for name, record in self.state.records.items() if record.fused}

    def unfuse(self, names: Sequence[str] | None = None) -> None:
        """Take adapters out of the layers' weights, all by default; they are active again if they were.

        Raises:
            ConfigError: an adapter is not fused.
            WeightsError: somebody else changed the fused weights, which undoing would lose.
        """
        with lock:
            chosen = self.fused if names is None else list(names)
            loose = [name for name in chosen if not self.record(name).fused]
            if loose or not chosen:
                raise ConfigError(
                    f"Not fused: {some(loose) or 'any adapter'}. Fused are: {some(self.fused) or 'none'}."
                )
            kept = {name: weights for name, weights in self._fused().items() if name not in chosen}
            if self.enabled:
                self._fold(kept, self._paths(chosen), safe=False)
            for name in chosen:
                self.record(name).fused = {}
            self._tell()

    def bake(self) -> None:
        """Make the fused weights the network's own and remove the fused adapters. There is no undo."""
        with lock:
            if not self.fused or not self.enabled:
                raise ConfigError("There is no fused adapter in effect whose weights could be kept: fuse one first.")
            for layer in self._paths(self.fused).values():
                held = holder(layer)
                held.base_weight = held.base_bias = None
                held.put(layer, {})
            for name in self.fused:
                self.state.records[name].fused = {}
                self.remove(name)
            self._tell()

    def _fold(self, fused: Mapping[str, Mapping[str, float]], layers: Mapping[str, nn.Module], *, safe: bool) -> None:
        """Give layers the weights that they have with exactly these adapters fused."""
        touched = [path for path, layer in layers.items() if holder(layer).touched(layer)]
        if touched:
            raise WeightsError(
                f"The weights of {some(touched)} were changed while adapters were fused into them. Load the original "
                "weights again after `bake()`, which keeps the weights that are there and forgets the originals."
            )
        sums: dict[str, list[Tensor]] = {}

        @torch.no_grad()
        def make(path: str) -> dict[str, Tensor]:
            here = {name: weights[path] for name, weights in fused.items() if path in weights}
            made = folded(layers[path], here, path)
            if safe:
                sums[path] = [summary(tensor) for tensor in made.values()]
            return made

        made = dict(zip(layers, each(make, layers), strict=True))
        check_finite(sums, made)
        for path, layer in layers.items():
            holder(layer).put(layer, made[path])


def copied(parts: Mapping[str, Parts]) -> dict[str, Parts]:
    """Return the parts of an adapter in storage of their own."""
    return {path: one.map(torch.clone) for path, one in parts.items()}
