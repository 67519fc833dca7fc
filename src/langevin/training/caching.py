"""What an autoencoder says of the pictures of a run, computed once and kept on the disk.

A latent is kept by what it follows from: the bytes of the picture, its frame, the autoencoder's weights and their
type. So a picture, a resolution or a model that changes is encoded anew, and nothing else is. Kept are the mean and the
deviation of the autoencoder's spread, from which every position of a run still draws its own latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError, NonFiniteError
from ..core.logging import get_logger
from ..core.progress import progress_bar
from .data.buckets import Size
from .data.examples import Encoded, PictureExamples
from .data.framing import content, size_of
from .data.shelf import ENTRIES, Shelf, digest
from .trainer import Trainer

logger = get_logger(__name__)
LATER = {"scaling_factor", "latents_mean", "latents_std", "force_upcast", "sample_size", "up_block_types"}
"""What an autoencoder's configuration says of anything but the spread that it gives a picture."""
DECODING = ("decoder.", "post_quant_conv.")
FORMAT = "1"
"""Part of every key; it changes when pictures are framed or latents are kept otherwise."""


@dataclass(frozen=True)
class Wanted:
    """A picture to encode: of which set and example, under which name, in which size, and whether mirrored."""

    part: PictureExamples
    number: int
    name: str
    size: Size
    mirrored: bool

    def framed(self) -> Tensor:
        """Return it, (3, height, width) in [-1, 1]."""
        return self.part.framed(self.number, self.name, mirrored=self.mirrored)


def identity(vae: Any) -> str:
    """Return a hash of all that decides which spread an autoencoder gives a picture: encoder, configuration, type."""
    config = {name: v for name, v in dict(vae.config).items() if name not in LATER and not name.startswith("_")}
    held = digest(type(vae).__name__.encode(), json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith(DECODING):
            values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            held = digest(held.encode(), name.encode(), str(tensor.shape).encode(), values.data)
    return digest(held.encode(), str(vae.dtype).encode())


def fill(run: Trainer, folder: Path) -> None:
    """Let the autoencoder see the pictures of a run that a folder has no latents of, and train on latents from now on.

    Every process encodes a share of them, in batches of as many rows as those of the run, so that on a CPU the latents
    have the bits that they would have there.

    Raises:
        ConfigError: when the crop is drawn; when processes do not see each other's files.
        NonFiniteError: when the autoencoder returns NaN or infinity; names the pictures.
    """
    task: Any = run.task
    data: Any = run.data
    accelerator = run.accelerator
    parts: list[PictureExamples] = data.sets()
    drawn = next((part for part in parts if not part.framing.centre), None)
    if drawn is not None:
        raise ConfigError("Latents of crops that are drawn cannot be kept: pass center_crop, or leave cache_latents.")
    shelf, network = Shelf(folder), identity(task.pipe.vae)
    wanted: dict[str, Wanted] = {}
    for part in parts:
        found, encoded = keyed(part, task.encodes, shelf, network)
        wanted.update(found)
        part.encoded = encoded
    if run.main:
        shelf.lacking(wanted, verify=True)
    accelerator.wait_for_everyone()
    missing = shelf.lacking(wanted, verify=False)
    missing.sort(key=lambda key: wanted[key].size)
    share = missing[accelerator.process_index :: accelerator.num_processes]
    encode(run, shelf, {key: wanted[key] for key in share})
    accelerator.wait_for_everyone()
    if lost := shelf.lacking(wanted, verify=False):
        raise ConfigError(
            f"{len(lost)} latents that other processes encoded are not in {folder}; name a folder that all processes "
            "share as latents_dir."
        )
    if run.main:
        old = len(wanted) - len(missing)
        logger.info("%d of %d latents were in %s, and %d are new.", old, len(wanted), folder, len(missing))


def keyed(part: PictureExamples, names: Sequence[str], shelf: Shelf, network: str) -> tuple[dict[str, Wanted], Encoded]:
    """Return the pictures of a set by key, and how its examples find them.

    Args:
        names: of the pictures that are encoded.
        network: see `identity`.
    """
    found: dict[str, Wanted] = {}
    keys: dict[str, list[tuple[str, ...]]] = {name: [] for name in names}
    mirrors = (False, True) if part.framing.mirror else (False,)
    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(partial(recognised, part, names), range(len(part))))
    for number, (hashes, _) in enumerate(facts):
        framing = replace(part.framing_of(number), mirror=False)
        size = (framing.height, framing.width)
        for name, hashed in zip(names, hashes, strict=True):
            base = json.dumps([FORMAT, network, hashed, asdict(framing)])
            own = tuple(digest(base.encode(), b"mirrored" if mirrored else b"") for mirrored in mirrors)
            found |= {key: Wanted(part, number, name, size, turn) for key, turn in zip(own, mirrors, strict=True)}
            keys[name].append(own)
    return found, Encoded(shelf, [size for _, size in facts], keys)


def recognised(part: PictureExamples, names: Sequence[str], number: int) -> tuple[list[str], Size]:
    """Return hashes of pictures of an example, and the height and width of the first, which all have.

    Raises:
        InputError: when one cannot be read; names the example.
    """
    record = part.records.rows[number]
    sources = [record.columns[part.pictures[name]] for name in names]
    try:
        return [content(source) for source in sources], size_of(sources[0])
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{record.name} cannot be read as a picture ({error}).") from error


def encode(run: Trainer, shelf: Shelf, todo: Mapping[str, Wanted]) -> None:
    """Encode pictures, in an order in which those of one size lie together, and keep their latents."""
    from torch.utils.data import DataLoader

    task: Any = run.task
    data: Any = run.data
    rows = run.run.batch * data.rows
    batches: list[list[str]] = []
    for _, group in groupby(todo, key=lambda key: todo[key].size):
        members = list(group)
        batches += [members[k : k + rows] for k in range(0, len(members), rows)]
    loader: Any = DataLoader(
        Pictures(todo),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=run.run.workers if len(batches) > 1 else 0,
    )
    ready: dict[str, dict[str, Tensor]] = {}
    with progress_bar(total=len(todo), desc="Latents", disable=not run.main or not todo) as bar:
        for keys, pixels in zip(batches, loader, strict=True):
            filled = pixels[torch.arange(rows) % len(keys)].to(run.accelerator.device)
            with torch.no_grad(), run.accelerator.autocast():
                mean, std = (part.cpu() for part in task.spread(filled))
            for k, key in enumerate(keys):
                if not (mean[k].isfinite().all() and std[k].isfinite().all()):
                    record = todo[key].part.records.rows[todo[key].number]
                    raise NonFiniteError(
                        f"The vae returned NaN or infinity in {mean.dtype} for {record.name}; train in float32 or "
                        "bfloat16, or check it.",
                        module="vae",
                    )
                ready[key] = {"mean": mean[k].clone(), "std": std[k].clone()}
            if len(ready) >= ENTRIES:
                shelf.write(ready)
                ready = {}
            bar.update(len(keys))
    if ready:
        shelf.write(ready)


class Pictures:
    """Pictures by key, as a DataLoader takes them."""

    def __init__(self, wanted: Mapping[str, Wanted]) -> None:
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, key: str) -> Tensor:
        return self.wanted[key].framed()
