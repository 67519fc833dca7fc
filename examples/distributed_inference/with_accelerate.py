"""Prompts shared out by accelerate: `accelerate launch --num_processes 2 with_accelerate.py`; torchrun on CPUs."""

from accelerate import PartialState

from langevin import DiffusionPipeline
from langevin.picturebook import model_folder

PROMPTS = ["a red house under a yellow sun", "a cat left of a tree", "a blue house, night"]

if __name__ == "__main__":
    pipeline = DiffusionPipeline.from_pretrained(model_folder())
    distributed_state = PartialState()
    pipeline.to(distributed_state.device)

    with distributed_state.split_between_processes(list(enumerate(PROMPTS))) as mine:
        for number, prompt in mine:
            result = pipeline(prompt, num_inference_steps=10, guidance_scale=2.0, seed=number).images[0]
            result.save(f"result_{number}.png")
