"""The control picture of a run: kept for its steps, and another one once a callback gives it."""

from __future__ import annotations

import pytest
import torch

from langevin.core.errors import InputError
from langevin.families.control import Control, ControlNet


def test_another_picture_of_a_callback_is_shown() -> None:
    first, second = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    attached = ControlNet([Control(None, first)])
    (control,) = attached.controls
    assert attached.tensor is first
    seen = control.shown(control.net, control.picture, 2)
    assert seen is control.shown(control.net, control.picture, 2) and torch.equal(seen, torch.cat([first, first]))
    for given in (second, torch.cat([first, second])):
        attached.tensor = given
        assert torch.equal(control.shown(control.net, control.picture, 2), torch.cat([second, second]))
    attached.tensor = first[:1]
    assert torch.equal(control.shown(control.net, control.picture, 1), first[:1].expand(2, -1, -1, -1))


def test_pictures_of_another_number_or_shape_are_refused() -> None:
    picture = torch.rand(2, 3, 8, 8)
    attached = ControlNet([Control(None, picture), Control(None, picture)])
    assert len(attached.tensor) == 2
    with pytest.raises(InputError, match="1 control pictures for 2 ControlNets"):
        attached.tensor = picture
    for wrong in (torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 9)):
        with pytest.raises(InputError, match="this run has"):
            attached.tensor = [picture, wrong]
