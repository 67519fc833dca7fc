"""The one call of a conditional UNet: branches of a guidance, attachments of a task, conditioning of a family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError
from ..diffusion.guidance import Branch, Branches, Guidance, guided
from ..diffusion.table import Step
from ..nn.compiled import vary
from .common import Kept, dtype_of, sample_of, timestep_on
from .conditioning import Conditioning, Conditions


@dataclass
class ModelCall:
    """One call of the UNet for a batch of branches, open to attachments until it is made.

    Attributes:
        sample: (branches * batch, channels, height, width), scaled as the network wants it.
        timestep: scalar tensor.
        cond: the conditioning of all rows.
        options: further keywords of the network, such as residuals, which attachments accumulate.
    """

    sample: Tensor
    timestep: Tensor
    cond: Conditioning
    options: dict[str, Any] = field(default_factory=dict)


NEGATIVE_NAMES = {
    "add_text_embeds": ("negative_pooled_prompt_embeds",),
    "add_time_ids": ("negative_add_time_ids", "add_neg_time_ids"),
}
"""Callback tensors whose negative rows have other names than `negative_` and theirs."""
Attachment = Callable[[ModelCall, Step, Branches], None]
"""Edits a call of the network before it is made: adds channels, adds residuals to those that are there."""


@runtime_checkable
class Shown(Protocol):
    """What callbacks may see of an attachment, and replace.

    Attributes:
        name: under which they know it.
        tensor: one row per picture, or a list of such tensors.
    """

    name: str
    tensor: Any


@dataclass
class Channels:
    """An attachment: further channels beside the sample's, the same at every step.

    Attributes:
        name: under which callbacks know it.
        tensor: (batch, channels, height, width).
        blank: conditions whose branches see zeros instead.
    """

    name: str
    tensor: Tensor
    blank: tuple[str, ...] = ()

    def __call__(self, call: ModelCall, step: Step, branches: Branches) -> None:
        """Append the channels to the sample of every branch."""
        rows = [torch.zeros_like(self.tensor) if b.condition in self.blank else self.tensor for b in branches]
        call.sample = torch.cat([call.sample, torch.cat(rows).to(call.sample.dtype)], dim=1)


class Denoiser:
    """The UNet's prediction for (sample, step), combined by a guidance.

    It belongs to one run: callbacks may replace its conditioning, its channels and its guidance between steps.

    Args:
        unet: called as `unet(sample, timestep, **conditioning, **options)` and nothing more.
        conditions: the conditioning of every branch that the guidance may ask for, "positive" first.
        guidance: which branches a step needs; see `diffusion.guidance`.
        attach: attachments, applied in order.
        options: keywords of every call; None values are left out.
        shared: keywords of every call with one row per picture, repeated for every branch, such as class labels.
        shown: what callbacks may see beside the attachments, such as a constraint's mask.
    """

    def __init__(
        self,
        unet: Any,
        conditions: Conditions,
        guidance: Guidance,
        *,
        attach: Sequence[Attachment] = (),
        options: Mapping[str, Any] | None = None,
        shared: Mapping[str, Tensor | None] | None = None,
        shown: Sequence[Any] = (),
    ) -> None:
        self.unet = unet
        self.conditions = {name: cond for name, cond in conditions.items() if cond is not None}
        self.guidance = guidance
        self.attach = tuple(attach)
        self.shown = [edit for edit in (*attach, *shown) if isinstance(edit, Shown)]
        self.options = {name: value for name, value in (options or {}).items() if value is not None}
        self.shared = {name: value for name, value in (shared or {}).items() if value is not None}
        self.joined: Kept[Conditioning] = Kept(joined)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Return the guided prediction for a sample (batch, channels, height, width)."""
        return guided(self.guidance, x, step, lambda branches: self.predict(x, step, branches))

    def predict(self, x: Tensor, step: Step, branches: Branches) -> tuple[Tensor, ...]:
        """Return one prediction per branch: a single batch, unless a branch patches the network."""
        if len(branches) > 1 and any(branch.patch for branch in branches):
            return tuple(self.predict(x, step, (branch,))[0] for branch in branches)
        samples = torch.cat([x if branch.sample is None else branch.sample for branch in branches])
        if step.in_scale != 1.0:
            samples = samples * step.in_scale
        dtype = dtype_of(self.unet, x.dtype)
        cond = self.joined(dtype, *(self.condition(branch, step) for branch in branches))
        shared = {name: torch.cat([rows] * len(branches)) for name, rows in self.shared.items()}
        told = timestep_on(self.told(step), x.device)
        call = ModelCall(samples.to(dtype), told, cond, {**self.options, **shared})
        for attach in self.attach:
            attach(call, step, branches)
        vary(self.unet, call.sample, *maps_in(call.options.values()))
        with branches[0].patch() if branches[0].patch else nullcontext():
            output = self.unet(call.sample, call.timestep, **call.cond.keywords(), **call.options)
        return self.read(sample_of(output).to(x.dtype), x, step).chunk(len(branches))

    def told(self, step: Step) -> int | float:
        """Return what the network is told of the time."""
        return step.timestep

    def read(self, output: Tensor, x: Tensor, step: Step) -> Tensor:
        """Return the predictions of all branches for the sample `x`, from the network's output."""
        return output

    def condition(self, branch: Branch, step: Step) -> Conditioning:
        """Return a branch's conditioning at a step.

        Raises:
            ConfigError: when this run has none under that name.
        """
        if branch.condition not in self.conditions:
            raise ConfigError(
                f"The guidance asks for the {branch.condition} prompt, which this run did not encode; "
                "start with guidance above 1."
            )
        return self.conditions[branch.condition].at(step.index)

    # What callbacks see and change -----------------------------------------------------------------------------------

    def tensors(self, call: int) -> dict[str, Tensor | None]:
        """Return what callbacks may see after a network call, counted from 0.

        With guidance a conditioning's tensor holds negative rows, then positive ones. `negative_` and the name gives
        the negative rows alone, None without guidance; channels and constraints go by their own name.
        """
        positive, negative = self._pair(call)
        seen: dict[str, Tensor | None] = {}
        for name, part in positive.offered.items():
            rows = [getattr(cond, part) for cond in (negative, positive) if cond is not None]
            seen[name] = torch.cat(rows) if rows[0] is not None else None
            seen |= dict.fromkeys(negative_names(name), None if negative is None else rows[0])
        return seen | {edit.name: edit.tensor for edit in self.shown}

    def replace(self, call: int, **returned: Any) -> None:
        """Go on with tensors that a callback returned, under the names of `tensors`; prompts change no more then.

        Args:
            call: after which network call, counted from 0.
            returned: positive rows, or negative and positive rows as `tensors` gives them; one row serves all.

        Raises:
            InputError: for another number of rows.
        """
        for edit in self.shown:
            if returned.get(edit.name) is not None:
                edit.tensor = returned[edit.name]
        positive, _ = self._pair(call)
        for name, part in positive.offered.items():
            rows, given = len(getattr(positive, part)), returned.get(name)
            if given is not None:
                if len(given) not in (1, rows, 2 * rows):
                    raise InputError(f"The callback returned {len(given)} rows of `{name}` for a batch of {rows}.")
                if len(given) == 2 * rows:
                    self._set(call, "negative", part, given[:rows])
                    given = given[rows:]
                self._set(call, "positive", part, given.expand(rows, *given.shape[1:]))
            for alone in map(returned.get, negative_names(name)):
                if alone is not None:
                    self._set(call, "negative", part, alone.expand(rows, *alone.shape[1:]))

    def _pair(self, call: int) -> tuple[Conditioning, Conditioning | None]:
        """Return the conditionings of the positive and the negative prompt at a network call."""
        positive, negative = self.conditions["positive"].at(call), self.conditions.get("negative")
        return positive, None if negative is None else negative.at(call)

    def _set(self, call: int, name: str, part: str, rows: Tensor) -> None:
        old = self.conditions.get(name, self.conditions["positive"]).at(call)
        changes: dict[str, Any] = {part: rows}
        self.conditions[name] = replace(old, **changes)


def maps_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the feature maps (B, channels, height, width) among keywords of a network: tensors, and tuples of them."""
    for value in values:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Tensor) and one.dim() == 4:
                yield one


def joined(dtype: torch.dtype, *parts: Conditioning) -> Conditioning:
    """Return the conditionings of several branches as those of one batch, in a type."""
    return Conditioning.cat(parts).to(dtype=dtype)


def negative_names(name: str) -> tuple[str, ...]:
    """Return the documented names of the negative rows of a callback's tensor."""
    return NEGATIVE_NAMES.get(name, (f"negative_{name}",))
