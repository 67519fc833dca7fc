"""IP-Adapters on a UNet: attached as guests, scaled, and removed without a trace (Ye et al. 2023, 2308.06721)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, InputError, WeightsError
from ..nn.attention import Attention, default_processor
from ..nn.compiled import bare
from ..nn.image_projection import MultiIPAdapterImageProjection
from ..nn.ip_processors import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
from ..nn.processors import Processor, named_attentions
from ..weights.dialects.ip_adapter import IPAdapter, Kind
from .guest import make_guest
from .lora import free_name
from .stack import Stack
from .weighing import finite, weight_by_transformer

Weight = float | Sequence[float] | Mapping[str, Any]
"""Of an adapter: a number, one per picture, or by block; see `weighing.weight_by_transformer`."""
ORDER = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
"""How files count the attentions of a UNet: the way down, the way up, the middle."""


@dataclass(frozen=True)
class Attached:
    """What is attached to a UNet.

    Attributes:
        kinds: of the adapters, in their order.
        replaced: name of an attention -> the processor that it had before.
        loras: names of the LoRA adapters that came with them, as FaceID files have them.
    """

    kinds: tuple[Kind, ...]
    replaced: Mapping[str, Any]
    loras: tuple[str, ...] = ()


def attached(unet: Any) -> Attached | None:
    """Return what is attached to a UNet, None without adapters."""
    return getattr(bare(unet), "_ip_adapters", None)


def projections(unet: Any) -> list[Any]:
    """Return the projections of the adapters of a UNet."""
    layers: Any = () if attached(unet) is None else bare(unet).get_submodule("encoder_hid_proj.image_projection_layers")
    return list(layers)


def numbered(unet: nn.Module) -> dict[int, str]:
    """Return the names of the attentions of a UNet by their number in files of adapters.

    Those of an adapter's own projection do not count.
    """
    names = [name for name, _ in named_attentions(unet) if name.partition(".")[0] in ORDER]
    return dict(enumerate(sorted(names, key=lambda name: ORDER[name.partition(".")[0]])))


def attach(unet: Any, adapters: Sequence[IPAdapter]) -> None:
    """Attach adapters to a UNet in place of those that are there; their scale is 1.

    Raises:
        ConfigError: the network is no UNet with cross-attention of this library, projects its context itself, or has
            attentions with weights or code of someone else.
        WeightsError: an adapter was made for another network. Nothing has changed then.
    """
    unet = bare(unet)
    if not adapters:
        raise InputError("No IP-Adapter was given.")
    present = attached(unet)
    places = {number: name for number, name in numbered(unet).items() if unet.get_submodule(name).is_cross_attention}
    replaced = {name: original(name, unet.get_submodule(name), present) for name in places.values()}
    if not places or (present is None and getattr(unet, "encoder_hid_proj", None) is not None):
        raise ConfigError(
            f"IP-Adapters attach to the cross-attention of a UNet2DConditionModel, whose context is text; "
            f"{'this one projects its context itself' if places else f'{type(unet).__name__} has none'}."
        )
    layers = {number: unet.get_submodule(name) for number, name in places.items()}
    for adapter in adapters:
        check_fits(adapter, layers)
    place: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    projection = MultiIPAdapterImageProjection([projection_of(adapter) for adapter in adapters]).to(**place)
    made = {}
    for number, name in places.items():
        made[name] = processor_of(layers[number], [one.attention[number] for one in adapters], adapters, replaced[name])
        made[name].to(**place)
    loras = add_loras(unet, adapters)
    detach(unet)
    for guest in (projection, *made.values()):
        make_guest(guest.eval().requires_grad_(False))
    unet.encoder_hid_proj = projection
    for name, processor in made.items():
        unet.get_submodule(name).set_processor(processor)
    unet._ip_adapters = Attached(tuple(adapter.kind for adapter in adapters), replaced, loras)


def add_loras(unet: nn.Module, adapters: Sequence[IPAdapter]) -> tuple[str, ...]:
    """Add the LoRA layers of the adapters that have some, beside those that are there, and return their names."""
    own, names = Stack(unet), numbered(unet)
    done: list[str] = []
    try:
        for adapter in adapters:
            if adapter.lora:
                layers = adapter.lora_of(names)["unet"]
                name = free_name(own.names, "faceid")
                own.add(name, layers)
                done.append(name)
    except BaseException:
        for name in done:
            own.remove(name)
        raise
    return tuple(done)


def original(name: str, attn: Attention, present: Attached | None) -> Any:
    """Return the processor that an attention has without adapters.

    Raises:
        ConfigError: when it is none of this library, or has weights of its own.
    """
    processor = attn.processor
    if isinstance(processor, IPAdapterAttnProcessor) and present is not None:
        return present.replaced[name]
    if not isinstance(processor, Processor):
        raise ConfigError(
            f"{name} has the processor {type(processor).__name__}, which an IP-Adapter would replace; remove it first "
            "with `unet.set_attn_processor(AttnProcessor2_0())`."
        )
    return processor


def check_fits(adapter: IPAdapter, layers: Mapping[int, Attention]) -> None:
    """Raise WeightsError unless an adapter has keys and values of the right shape for every cross-attention."""
    numbers = set(adapter.attention)
    if numbers != set(layers):
        raise WeightsError(
            f"{adapter.what} was made for another UNet: it has keys and values for {len(numbers)} cross-attentions, "
            f"and this one has {len(layers)}. {family_of(len(numbers))}"
        )
    for number, attn in layers.items():
        for name, tensor in adapter.attention[number].items():
            wanted = (attn.inner_dim, attn.cross_attention_dim)
            if tuple(tensor.shape) != wanted:
                raise WeightsError(
                    f"{adapter.what} was made for another UNet: {number}.{name}_ip.weight is {tuple(tensor.shape)}, "
                    f"and this one needs {wanted}."
                )


def family_of(attentions: int) -> str:
    """Return a sentence about the UNets with a number of cross-attentions."""
    known = {16: "Stable Diffusion 1 and 2 have 16.", 70: "Stable Diffusion XL has 70."}
    return known.get(attentions, "")


def projection_of(adapter: IPAdapter) -> nn.Module:
    """Return the projection of an adapter with its values.

    Raises:
        WeightsError: when values are missing, foreign or of another shape.
    """
    with torch.device("meta"):
        try:
            module = adapter.kind.build(adapter.shapes)
        except KeyError as error:
            raise WeightsError(f"{adapter.what} lacks {error.args[0]!r} of a {adapter.kind.name} adapter.") from error
    try:
        module.load_state_dict(adapter.projection, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{adapter.what} does not hold the projection of a {adapter.kind.name}: {error}") from error
    return module


def processor_of(
    attn: Attention, weights: Sequence[Mapping[str, Any]], adapters: Sequence[IPAdapter], replaced: Processor
) -> IPAdapterAttnProcessor:
    """Return the processor of an attention with the keys and values of every adapter."""
    tokens = [adapter.tokens or 1 for adapter in adapters]
    with torch.device("meta"):
        made = IPAdapterAttnProcessor2_0(attn.inner_dim, attn.cross_attention_dim, tokens)
    made.backend, made.slice_size = replaced.backend, replaced.slice_size
    values = {f"{name}_ip.{i}.weight": row[name] for i, row in enumerate(weights) for name in ("to_k", "to_v")}
    made.load_state_dict(values, assign=True)
    return made


def detach(unet: Any) -> bool:
    """Remove the adapters of a UNet, and tell whether there were any. Everything is as before them."""
    unet = bare(unet)
    present = attached(unet)
    if present is None:
        return False
    for name, processor in present.replaced.items():
        attn = unet.get_submodule(name)
        if isinstance(attn.processor, IPAdapterAttnProcessor):
            switched = processor.backend is not None and attn.processor.backend != processor.backend
            attn.set_processor(default_processor(attn) if switched else processor)
    for name in set(present.loras).intersection(Stack(unet).names):
        Stack(unet).remove(name)
    del unet.encoder_hid_proj, unet._ip_adapters
    unet.encoder_hid_proj = None
    return True


def processors(unet: Any) -> dict[str, IPAdapterAttnProcessor]:
    """Return the processors of the adapters of a UNet by the names of their attentions.

    Raises:
        ConfigError: when others were installed over them since.
    """
    unet, present = bare(unet), attached(unet)
    found = {name: unet.get_submodule(name).processor for name in (present.replaced if present else ())}
    lost = [name for name, processor in found.items() if not isinstance(processor, IPAdapterAttnProcessor)]
    if lost:
        raise ConfigError(
            f"The processors of the IP-Adapter were replaced by others ({type(found[lost[0]]).__name__} in {lost[0]}), "
            "so that it has no effect; load it again, or remove it with `unload_ip_adapter()`."
        )
    return found


def set_scale(unet: Any, scale: Weight | Sequence[Weight]) -> None:
    """Set the weights of the adapters of a UNet.

    Args:
        scale: one weight for all adapters, or a list with one for each: a number, a list with a number per picture
            (which then has a mask), or numbers by block.

    Raises:
        ConfigError: when there are none; see also `weight_by_transformer`.
        InputError: for another number of weights than adapters, or what is no number.
    """
    found = processors(unet)
    if not found:
        raise ConfigError("No IP-Adapter is loaded; call `load_ip_adapter` first.")
    count = len(attached(unet).kinds)  # type: ignore[union-attr]
    each: list[Any] = list(scale) if isinstance(scale, (list, tuple)) else [scale]
    if len(each) == 1:
        each = each * count
    if len(each) != count:
        raise InputError(f"{len(each)} scales were given for {count} IP-Adapters; pass one, or one for each.")
    columns = [scale_by_name(list(found), one) for one in each]
    for name, processor in found.items():
        processor.scale = [column[name] for column in columns]


def scale_by_name(names: Iterable[str], scale: Weight) -> dict[str, Any]:
    """Return the weight of an adapter in each attention."""
    if isinstance(scale, Mapping):
        by_place = weight_by_transformer(names, scale, default=0.0)
        return {
            name: next(value for place, value in by_place.items() if name.startswith(f"{place}.")) for name in names
        }
    for one in scale if isinstance(scale, (list, tuple)) else [scale]:
        finite(one, "The scale of an IP-Adapter")
    return dict.fromkeys(names, scale)
