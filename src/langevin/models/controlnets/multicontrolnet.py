"""Several ControlNets at once: their residuals are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..base import ModelMixin
from ..several import SeveralFolders, check_parts, one_each
from .controlnet import ControlNetModel, ControlNetOutput


class MultiControlNetModel(SeveralFolders, ModelMixin):
    """Runs every ControlNet in `nets` on its own control picture and returns the sum of their residuals.

    Raises:
        ConfigError: the list is empty or holds another class.
    """

    part_class = ControlNetModel

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(check_parts(type(self), controlnets, ControlNetModel))

    @property
    def parts(self) -> nn.ModuleList:
        """The ControlNets."""
        return self.nets

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float | Tensor] | float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[tuple[Tensor, ...], Tensor]:
        """Compute the summed residuals.

        Args:
            controlnet_cond: one control picture per ControlNet, each as for `ControlNetModel`.
            conditioning_scale: one factor per ControlNet, or one for all.

        The other arguments are those of `ControlNetModel`. Raises InputError when the lists have another length than
        `nets`.
        """
        pictures = one_each("controlnet_cond", controlnet_cond, self.nets)
        scales = one_each("conditioning_scale", conditioning_scale, self.nets, numbers=True)
        down: tuple[Tensor, ...] = ()
        mid: Any = None
        for net, picture, scale in zip(self.nets, pictures, scales, strict=True):
            more, middle = net(
                sample,
                timestep,
                encoder_hidden_states,
                picture,
                scale,
                class_labels,
                timestep_cond,
                attention_mask,
                added_cond_kwargs,
                cross_attention_kwargs,
                guess_mode,
                return_dict=False,
            )
            down = more if mid is None else tuple(a + b for a, b in zip(down, more, strict=True))
            mid = middle if mid is None else mid + middle
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=mid) if return_dict else (down, mid)
