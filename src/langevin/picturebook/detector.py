"""The checker's network: a small detector, trained on rendered pictures, that finds things and names the setting.

Every cell of an 8 x 8 grid says whether a thing is centred nearby, which kind and colour it has and where its centre
lies (anchor-free detection as in FCOS, Tian et al. 2019, https://arxiv.org/abs/1904.01355); two heads on the pooled
features name background and style.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.files import atomic_file
from ..core.weights_io import write_safetensors
from .data import signed
from .decoys import UNKNOWN, add_decoy, random_thing
from .loop import Budget, Recipe, Stage
from .world import BACKGROUNDS, COLOURS, KINDS, STYLES, Scene, Thing, render, sample_scene

SIDE = 64
GRID = 8
REACH = 6.5 / SIDE
"""A cell answers for a thing whose centre lies within this distance of the cell's own centre, along both axes."""

LABELS = (*KINDS, UNKNOWN)
"""The kinds the detector tells apart: the sixteen things, and what is none of them."""

_CELL_OUTPUTS = 1 + 2 + len(LABELS) + len(COLOURS)


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Detector(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to cells (B, 8, 8, 30), background logits (B, 6) and style logits (B, 5).

    A cell holds: presence logit, offset to the centre (x, y, in cells), kind logits, colour logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(3, 32, 4, 2),
            _layer(32, 64, 3, 2),
            _layer(64, 64, 3, 1),
            _layer(64, 96, 3, 2),
            _layer(96, 112, 3, 1),
            _layer(112, 112, 3, 1),
        )
        self.cells = nn.Conv2d(112, _CELL_OUTPUTS, 1)
        self.setting = nn.Linear(2 * 112, len(BACKGROUNDS) + len(STYLES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cells, background logits and style logits."""
        features = self.body(pictures)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        background, style = self.setting(pooled).split([len(BACKGROUNDS), len(STYLES)], dim=1)
        return self.cells(features).permute(0, 2, 3, 1), background, style


def loose_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene with none to three things or decoys, of any colour, anywhere, so nothing is taken for granted."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.06, 0.36, 0.46, 0.12]))
    things: list[Thing] = []
    for _ in range(40 * count):
        extent = 2 * int(rng.integers(9, 18 if count == 1 else 14)) / SIDE
        x, y = (float(v) for v in rng.uniform(extent / 2 - 0.04, 1.04 - extent / 2, size=2))
        if len(things) < count and all(max(abs(x - t.x), abs(y - t.y)) > 0.46 * (extent + t.extent) for t in things):
            things.append(random_thing(rng, x, y, extent, odd=0.2))
    background, style = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], STYLES[int(rng.integers(len(STYLES)))]
    return Scene(tuple(things), None, background, style, int(rng.integers(2**31)))


def cell_targets(scene: Scene) -> np.ndarray:
    """Return (8, 8, 5) floats: presence, offset x and y in cells, kind number, colour number."""
    target = np.zeros((GRID, GRID, 5), dtype=np.float32)
    nearest = np.full((GRID, GRID), np.inf)
    middle = (np.arange(GRID) + 0.5) / GRID
    things = [(thing, x, y) for thing in scene.things for x, y in thing.centres]
    for thing, x, y in things:
        across, down = np.abs(middle[None, :] - x), np.abs(middle[:, None] - y)
        mine = (np.maximum(across, down) < REACH) & (across + down < nearest)
        nearest[mine] = (across + down)[mine]
        for row, column in zip(*np.nonzero(mine), strict=True):
            offset = ((x - middle[column]) * GRID, (y - middle[row]) * GRID)
            target[row, column] = (1, *offset, LABELS.index(thing.kind), COLOURS.index(thing.colour))
    return target


def render_decoyed(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene that may have decoys among its things."""
    decoys = [thing for thing in scene.things if thing.kind == UNKNOWN]
    if not decoys:
        return render(scene)
    canvas = render(replace(scene, things=tuple(thing for thing in scene.things if thing.kind != UNKNOWN)))
    for thing in decoys:
        add_decoy(canvas, thing, scene, rng)
    return canvas


def batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, cell targets and (background, style) numbers for `size` fresh scenes."""
    scenes = []
    for _ in range(size):
        choice = rng.random()
        scenes.append(loose_scene(rng) if choice < 0.5 else sample_scene(rng, held_out=choice < 0.62))
    pictures = signed(np.stack([render_decoyed(scene, rng) for scene in scenes]))
    target = torch.from_numpy(np.stack([cell_targets(scene) for scene in scenes]))
    setting = torch.tensor([(BACKGROUNDS.index(s.background), STYLES.index(s.style)) for s in scenes])
    return pictures, target, setting


def spoil(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, 64, 64) in [-1, 1] with a decoder's faults: bends, softness, noise, blocks."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    count = len(pictures)
    bend = F.interpolate(torch.randn(count, 2, 6, 6, generator=generator), (SIDE, SIDE), mode="bicubic")
    straight = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 3, SIDE, SIDE], align_corners=False)
    reach = draw(count, 1, 1, 1) * 1.6 * 2 / SIDE
    grid = straight + reach * bend.permute(0, 2, 3, 1)
    out = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    out[::2] = pictures[::2]
    third = count // 3
    side = int(torch.randint(30, 60, (1,), generator=generator))
    small = F.interpolate(out[:third], (side, side), mode="bilinear", antialias=True, align_corners=False)
    out[:third] = F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False)
    share = 0.7 * draw(third, 1, 1, 1)
    soft = F.avg_pool2d(F.pad(out[third : 2 * third], (1, 1, 1, 1), mode="reflect"), 3, 1)
    out[third : 2 * third] = out[third : 2 * third].lerp(soft, share)
    blocks = F.avg_pool2d(out[-third // 2 :], 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    out[-third // 2 :] = out[-third // 2 :].lerp(blocks, 0.5)
    gain = 1 + 0.16 * (draw(count, 3, 1, 1) - 0.5) + 0.24 * (draw(count, 1, 1, 1) - 0.5)
    out = out * gain + 0.16 * (draw(count, 1, 1, 1) - 0.5)
    noise = torch.randn(out.shape, generator=generator)
    smooth = F.interpolate(torch.randn(count, 3, 16, 16, generator=generator), (SIDE, SIDE), mode="bilinear")
    out = out + 0.10 * draw(count, 1, 1, 1) ** 2 * noise + 0.14 * draw(count, 1, 1, 1) ** 2 * smooth
    return out.clamp(-1, 1)


def loss_of(outputs: tuple[Tensor, ...], target: Tensor, setting: Tensor) -> Tensor:
    """Return the sum of presence, centre, kind, colour, background and style losses."""
    cells, background, style = (part.float() for part in outputs)
    presence = F.binary_cross_entropy_with_logits(cells[..., 0], target[..., 0])
    here = target[..., 0] > 0
    seen, wanted = cells[here], target[here]
    place = F.smooth_l1_loss(seen[:, 1:3], wanted[:, 1:3])
    kind = F.cross_entropy(seen[:, 3 : 3 + len(LABELS)], wanted[:, 3].long())
    colour = F.cross_entropy(seen[:, 3 + len(LABELS) :], wanted[:, 4].long())
    around = F.cross_entropy(background, setting[:, 0]) + F.cross_entropy(style, setting[:, 1])
    return 8 * presence + 2 * place + kind + colour + 0.2 * around


class DetectorStage(Stage):
    """Trains the detector on fresh scenes, whose pictures are spoilt as a decoder might spoil them."""

    name = "checker"
    recipe = Recipe(lr=3e-3, batch=96, warmup=50, betas=(0.9, 0.999), clip=5.0)
    budget = Budget(minutes=7)
    product = "checker.safetensors"

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, Detector()

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        pictures, target, setting = batch(rng, self.recipe.batch)
        pictures = spoil(pictures, generator).contiguous(memory_format=torch.channels_last)
        pictures, target, setting = (each.to(self.device) for each in (pictures, target, setting))
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            outputs = self.model(pictures)
        return {"loss": loss_of(outputs, target, setting)}

    def write(self, path: Path) -> None:
        """Write the weights in half precision."""
        weights = {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
        with atomic_file(path) as partial:
            write_safetensors(partial, weights, {"format": "pt"})
