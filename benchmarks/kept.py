"""What keeping the keys and values of a text saves per call of a conditional UNet: `python -m benchmarks.kept`.

One core, and the processor's own clock, so that other programs on the machine count little. The ways take turns; the
least and the median of their times are told, beside the time that all keys and values, and all embeddings of the time,
take alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

import langevin
from langevin.nn.resnet import ResnetBlock
from langevin.optimization import kept

PICTUREBOOK = Path(langevin.__file__).parent / "picturebook" / "model" / "unet"
FULL = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}


def milliseconds(call: Callable[[], object], times: int) -> list[float]:
    """Return the processor time of every call."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(1e3 * (time.process_time() - begin))
    return found


def told(name: str, found: Iterable[float]) -> None:
    """Print the least and the median."""
    found = list(found)
    print(f"{name:28} least {min(found):10.2f} ms   median {statistics.median(found):10.2f} ms", flush=True)


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="a network of Stable Diffusion 1.5's size, random weights")
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    unet = (
        langevin.UNet2DConditionModel(**FULL)
        if args.full
        else langevin.UNet2DConditionModel.from_pretrained(PICTUREBOOK)
    )
    unet.eval()
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    x, text, now = torch.randn(2, 4, side, side), torch.randn(2, args.tokens, width), torch.tensor(500)
    layers = kept.attentions(unet)
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock)]

    def embed() -> None:
        time_embedding = unet.time_embedding(unet.time_proj(now.expand(2)))
        for block in blocks:
            block.time_emb_proj(block.nonlinearity(time_embedding))

    told("keys and values alone", milliseconds(lambda: [a.keys_values(text, text) for a in layers], args.rounds))
    told("time embeddings alone", milliseconds(embed, args.rounds))
    ways = {"plain": None, "kept": 1, "kept, padded": kept.PAD}
    memories = {way: [pad and kept.KeptContexts(pad) for _ in layers] for way, pad in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds + 1):
        for way in ways:
            for layer, memory in zip(layers, memories[way], strict=True):
                layer.kept = memory
            times[way] += milliseconds(lambda: unet(x, now, text), 1)
    for way in ways:
        told(way, times[way][1:])


if __name__ == "__main__":
    main()
