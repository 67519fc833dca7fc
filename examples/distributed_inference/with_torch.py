"""A prompt for each process that torch spawns: `python with_torch.py`, on GPUs if there are two, else on CPUs."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from langevin import DiffusionPipeline
from langevin.picturebook import model_folder

PROMPTS = ["a red house under a yellow sun", "a cat left of a tree"]
GPUS = torch.cuda.device_count() >= len(PROMPTS)


def run_inference(rank, world_size):
    """Draw the prompt of this process."""
    dist.init_process_group("nccl" if GPUS else "gloo", rank=rank, world_size=world_size)
    sd = DiffusionPipeline.from_pretrained(model_folder())
    sd.to(rank if GPUS else "cpu")
    number = dist.get_rank()
    image = sd(PROMPTS[number], num_inference_steps=10, guidance_scale=2.0, seed=number).images[0]
    image.save(f"result_{number}.png")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29500")
    mp.spawn(run_inference, args=(len(PROMPTS),), nprocs=len(PROMPTS), join=True)
