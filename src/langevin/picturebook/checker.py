"""A small detector, trained on rendered pictures, that tells what a picture shows and whether a prompt was fulfilled.

`python -m langevin.picturebook.checker` trains it and prints its accuracy on renders it has not seen. Every cell of an
8 x 8 grid says whether a thing is centred nearby, which kind and colour it has and where its centre lies (anchor-free
detection as in FCOS, Tian et al. 2019, https://arxiv.org/abs/1904.01355); two heads on the pooled features name
background and style.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..core.errors import InputError, WeightsError, check_choice
from .captions import Request, Wish, describe, parse, request_of
from .decoys import UNKNOWN, add_decoy, random_thing
from .world import BACKGROUNDS, COLOURS, KINDS, STYLES, Scene, Thing, render, sample_scene

WEIGHTS = Path(__file__).with_name("weights") / "checker.safetensors"

SIDE = 64
GRID = 8
REACH = 6.5 / SIDE
"""A cell answers for a thing whose centre lies within this distance of the cell's own centre, along both axes."""

LABELS = (*KINDS, UNKNOWN)
"""The kinds the detector tells apart: the sixteen things, and what is none of them."""

_CELL_OUTPUTS = 1 + 2 + len(LABELS) + len(COLOURS)


@dataclass(frozen=True)
class Found:
    """A thing seen in a picture; x and y are shares of the picture's side, `confidence` lies between 0 and 1.

    `kind` is "unknown" for a shape that is none of the picturebook's things.
    """

    kind: str
    colour: str
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """How a picture answers a prompt.

    `kinds_right`: exactly the wanted things, in the wanted number, and nothing else. `colours_right` and
    `relation_right` imply it. `all_right` is all three; background and style are judged apart. What the prompt leaves
    open counts as right.
    """

    kinds_right: bool
    colours_right: bool
    relation_right: bool
    background_right: bool
    style_right: bool
    all_right: bool
    found: tuple[Found, ...]
    background: str
    style: str


@dataclass(frozen=True)
class Sight:
    """What the detector reads from one picture."""

    found: tuple[Found, ...]
    background: str
    style: str


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

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return cells, background logits and style logits."""
        features = self.body(pictures)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        background, style = self.setting(pooled).split([len(BACKGROUNDS), len(STYLES)], dim=1)
        return self.cells(features).permute(0, 2, 3, 1), background, style


# Reading a picture


def to_pictures(images: Any) -> torch.Tensor:
    """Return images as float tensor (N, 3, 64, 64) in [-1, 1].

    Accepts a list of PIL images or uint8 arrays (H, W, 3), a uint8 array (N, H, W, 3), a float array (N, H, W, 3) in
    [0, 1], or a float tensor (N, 3, H, W) in [-1, 1]. Raises InputError for anything else.
    """
    if isinstance(images, torch.Tensor):
        pictures = images.detach().float().cpu()
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(f"a tensor of pictures has the shape (N, 3, H, W), not {tuple(images.shape)}")
    else:
        array = np.stack([np.asarray(image) for image in images])
        if array.ndim != 4 or array.shape[-1] != 3:
            raise InputError(f"pictures have the shape (N, H, W, 3), not {array.shape}; convert them to RGB first")
        scaled = array.astype(np.float32) / 127.5 - 1 if array.dtype == np.uint8 else array.astype(np.float32) * 2 - 1
        pictures = torch.from_numpy(scaled).permute(0, 3, 1, 2)
    if pictures.shape[-2:] != (SIDE, SIDE):
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return pictures.contiguous()


@functools.lru_cache(maxsize=1)
def load_detector() -> Detector:
    """Load the shipped detector. Raises WeightsError when its file is missing."""
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise WeightsError(
            f"the checker's weights {WEIGHTS} are missing; train them: python -m langevin.picturebook.checker"
        )
    model = Detector()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


def _objects(cells: np.ndarray) -> tuple[Found, ...]:
    """Gather the cells of one picture (8, 8, 30; probabilities where logits were) into things, surest first."""
    rows, columns = np.nonzero(cells[..., 0] > 0.5)
    votes = sorted(((cells[r, c], r, c) for r, c in zip(rows, columns, strict=True)), key=lambda vote: -vote[0][0])
    groups: list[list[tuple[np.ndarray, float, float]]] = []
    for cell, row, column in votes:
        x, y = (column + 0.5 + cell[1]) / GRID, (row + 0.5 + cell[2]) / GRID
        near = next((g for g in groups if max(abs(g[0][1] - x), abs(g[0][2] - y)) < 0.2), None)
        if near is None:
            groups.append([(cell, x, y)])
        else:
            near.append((cell, x, y))
    things = []
    for group in groups:
        weights = np.array([cell[0] for cell, _, _ in group])
        mean = np.average([cell for cell, _, _ in group], axis=0, weights=weights)
        x, y = np.average([(x, y) for _, x, y in group], axis=0, weights=weights)
        kinds, colours = mean[3 : 3 + len(LABELS)], mean[3 + len(LABELS) :]
        sure = float(weights.max() * kinds.max() * colours.max())
        things.append(Found(LABELS[int(kinds.argmax())], COLOURS[int(colours.argmax())], float(x), float(y), sure))
    return tuple(things)


@torch.no_grad()
def look(images: Any, *, detector: Detector | None = None) -> list[Sight]:
    """Tell what each picture shows; `images` as in `to_pictures`, `detector` defaults to the shipped one."""
    model = detector or load_detector()
    sights = []
    for part in to_pictures(images).split(128):
        cells, backgrounds, styles = model(part)
        presence, offset, kind, colour = cells.float().split([1, 2, len(LABELS), len(COLOURS)], dim=-1)
        read = torch.cat([presence.sigmoid(), offset, kind.softmax(-1), colour.softmax(-1)], dim=-1).numpy()
        names = zip(backgrounds.argmax(1).tolist(), styles.argmax(1).tolist(), strict=True)
        sights += [Sight(_objects(c), BACKGROUNDS[b], STYLES[s]) for c, (b, s) in zip(read, names, strict=True)]
    return sights


# Judging


def _in_relation(relation: str | None, first: Sequence[Found], second: Sequence[Found]) -> bool:
    """Tell whether the first things lie left of or above the second ones, more so than across."""
    across = float(np.mean([f.x for f in second]) - np.mean([f.x for f in first]))
    down = float(np.mean([f.y for f in second]) - np.mean([f.y for f in first]))
    along, aside = (across, down) if relation == "left of" else (down, across)
    return along > 0.08 and along >= abs(aside)


def _match(wishes: Sequence[tuple[int, Wish]], found: Sequence[Found], relation: str | None) -> tuple[bool, bool, bool]:
    """Judge one assignment of found things to wishes, given as (number of the wish, wish)."""
    kinds = all(wish.kind == thing.kind for (_, wish), thing in zip(wishes, found, strict=True))
    colours = kinds and all(wish.colour in (None, thing.colour) for (_, wish), thing in zip(wishes, found, strict=True))
    sides = [[thing for (n, _), thing in zip(wishes, found, strict=True) if n == number] for number in (0, 1)]
    return kinds, colours, kinds and (relation is None or _in_relation(relation, *sides))


def judge(sight: Sight, request: Request) -> Verdict:
    """Compare what a picture shows with what was asked, taking the assignment of things to wishes that fits best."""
    wishes = [(number, wish) for number, wish in enumerate(request.things) for _ in range(wish.count)]
    best = (False, False, False)
    if len(wishes) == len(sight.found):
        orders = itertools.permutations(sight.found)
        best = max((_match(wishes, order, request.relation) for order in orders), key=lambda m: (m[0], sum(m)))
    background = request.background in (None, sight.background)
    style = request.style in (None, sight.style)
    return Verdict(*best, background, style, all(best), sight.found, sight.background, sight.style)


def check(images: Any, prompts: Sequence[str | Request], *, detector: Detector | None = None) -> list[Verdict]:
    """Judge each picture by its prompt (a caption or a parsed request); `images` as in `to_pictures`.

    Raises InputError when their numbers differ or a prompt is outside the picturebook's language.
    """
    sights = look(images, detector=detector)
    if len(sights) != len(prompts):
        raise InputError(f"{len(sights)} pictures came with {len(prompts)} prompts; give one prompt per picture")
    requests = [parse(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [judge(sight, request) for sight, request in zip(sights, requests, strict=True)]


def _evaluation_scenes(kind: str, rng: np.random.Generator) -> Iterator[Scene]:
    while True:
        scene = sample_scene(rng, held_out=kind == "held-out")
        alone = len(scene.things) == 1
        if (
            kind == "held-out"
            or (alone and kind == "single" and scene.things[0].count == 1)
            or (not alone and kind == "pair")
        ):
            yield scene


def prompts(n: int, kind: str, seed: int = 0) -> list[str]:
    """Return the fixed evaluation prompts: `kind` is "single" (one thing), "pair" (two in a relation) or "held-out"."""
    check_choice("kind", kind, ("single", "pair", "held-out"))
    rng = np.random.default_rng([seed, ("single", "pair", "held-out").index(kind)])
    return [describe(scene, rng) for scene in itertools.islice(_evaluation_scenes(kind, rng), n)]


# Training


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


def centres(scene: Scene) -> list[tuple[str, str, float, float]]:
    """Return kind, colour and centre of every copy of every thing."""
    spread = {1: (0.0,), 2: (-0.235, 0.235)}
    return [(t.kind, t.colour, t.x + offset, t.y) for t in scene.things for offset in spread[t.count]]


def _target(scene: Scene) -> np.ndarray:
    """Return (8, 8, 5) floats: presence, offset x and y in cells, kind number, colour number."""
    target = np.zeros((GRID, GRID, 5), dtype=np.float32)
    nearest = np.full((GRID, GRID), np.inf)
    middle = (np.arange(GRID) + 0.5) / GRID
    for kind, colour, x, y in centres(scene):
        across, down = np.abs(middle[None, :] - x), np.abs(middle[:, None] - y)
        mine = (np.maximum(across, down) < REACH) & (across + down < nearest)
        nearest[mine] = (across + down)[mine]
        for row, column in zip(*np.nonzero(mine), strict=True):
            offset = ((x - middle[column]) * GRID, (y - middle[row]) * GRID)
            target[row, column] = (1, *offset, LABELS.index(kind), COLOURS.index(colour))
    return target


def _picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene with its decoys."""
    decoys = [thing for thing in scene.things if thing.kind == UNKNOWN]
    if not decoys:
        return render(scene)
    canvas = render(replace(scene, things=tuple(thing for thing in scene.things if thing.kind != UNKNOWN)))
    for thing in decoys:
        add_decoy(canvas, thing, scene, rng)
    return canvas


def _batch(rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures, cell targets and (background, style) numbers for `size` fresh scenes."""
    scenes = []
    for _ in range(size):
        choice = rng.random()
        scenes.append(loose_scene(rng) if choice < 0.5 else sample_scene(rng, held_out=choice < 0.62))
    pictures = to_pictures([_picture(scene, rng) for scene in scenes])
    target = torch.from_numpy(np.stack([_target(scene) for scene in scenes]))
    setting = torch.tensor([(BACKGROUNDS.index(s.background), STYLES.index(s.style)) for s in scenes])
    return pictures, target, setting


def spoil(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pictures (B, 3, 64, 64) in [-1, 1] with a decoder's faults: bends, softness, noise, blocks."""

    def draw(*shape: int) -> torch.Tensor:
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


def loss_of(outputs: tuple[torch.Tensor, ...], target: torch.Tensor, setting: torch.Tensor) -> torch.Tensor:
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


def accuracy(detector: Detector | None = None, *, n: int = 500, seed: int = 10_000) -> dict[str, float]:
    """Return the share of fresh renders judged right, and of false prompts refused, for each kind of `prompts`."""
    scores: dict[str, float] = {}
    for kind in ("single", "pair", "held-out"):
        rng = np.random.default_rng([seed, len(scores)])
        scenes = list(itertools.islice(_evaluation_scenes(kind, rng), n))
        pictures = [render(scene) for scene in scenes]
        verdicts = check(pictures, [request_of(scene) for scene in scenes], detector=detector)
        scores[kind] = float(np.mean([v.all_right for v in verdicts]))
        scores[f"{kind} background"] = float(np.mean([v.background_right for v in verdicts]))
        wrong = check(pictures, [contradict(request_of(scene), rng) for scene in scenes], detector=detector)
        scores[f"{kind} refused"] = float(np.mean([not v.all_right for v in wrong]))
    return scores


def contradict(request: Request, rng: np.random.Generator) -> Request:
    """Return the request with one thing untrue: another colour, another kind, or the things of a relation exchanged."""
    if len(request.things) == 2 and rng.random() < 0.5:
        return replace(request, things=request.things[::-1])
    first, *others = request.things
    kinds = [kind for kind in KINDS if kind not in {thing.kind for thing in request.things}]
    colours = [colour for colour in COLOURS if colour != first.colour]
    if rng.random() < 0.5:
        changed = replace(first, colour=colours[int(rng.integers(len(colours)))])
    else:
        changed = replace(first, kind=kinds[int(rng.integers(len(kinds)))])
    return replace(request, things=(changed, *others))


def train(*, minutes: float = 7.0, batch: int = 96, seed: int = 0, report: bool = True) -> Detector:
    """Train a detector in bfloat16 on fresh renders for `minutes` of wall-clock time and return it, ready for use."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    start = time.monotonic()
    step, share = 0, 0.0
    while share < 1:
        share = min(1.0, (time.monotonic() - start) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * max(0.01, 0.5 * (1 + float(np.cos(np.pi * share))))
        pictures, target, setting = _batch(rng, batch)
        pictures = spoil(pictures, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(pictures)
        loss = loss_of(outputs, target, setting)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if report and step % 100 == 0:
            print(
                f"step {step}  {step * batch} pictures  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save the checker."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.checker", description=main.__doc__)
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="how long to train (0: only measure the shipped weights)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, scenes and faults")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="where to save the weights")
    options = parser.parse_args(arguments)
    model = train(minutes=options.minutes, seed=options.seed) if options.minutes > 0 else load_detector()
    if options.minutes > 0:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
        save_file(state, options.output)
    for name, score in accuracy(model, n=1000).items():
        print(f"{name:22s} {100 * score:6.2f} %")


if __name__ == "__main__":
    main()
