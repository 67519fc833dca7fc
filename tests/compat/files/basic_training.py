"""The documented tutorial of training as a script written for diffusers, at small sizes and offline.

`python basic_training.py PICTURES` trains on a folder of pictures and prints the losses as JSON. Besides sizes, these
lines differ from the tutorial: the pictures are local and come to their size without torchvision, the configuration has
the field that its loop reads, precision is float32, the sheet is drawn in few steps, and the hub is a stand-in.
"""

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, notebook_launcher
from datasets import load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps
from tqdm.auto import tqdm

UPLOADS, LOSSES = [], []


@dataclass
class TrainingConfig:
    image_size = 32
    train_batch_size = 4
    eval_batch_size = 4
    num_epochs = 8
    gradient_accumulation_steps = 1
    learning_rate = 2e-3
    lr_warmup_steps = 3
    save_image_epochs = 10
    save_model_epochs = 30
    mixed_precision = "no"
    output_dir = "ddpm-butterflies-128"
    push_to_hub = False
    hub_model_id = None
    hub_private_repo = None
    overwrite_output_dir = True
    seed = 0


config = TrainingConfig()
dataset = load_dataset("imagefolder", data_dir=sys.argv[1], split="train")


def preprocess(image):
    image = image.resize((config.image_size, config.image_size))
    image = ImageOps.mirror(image) if torch.rand(()) < 0.5 else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def transform(examples):
    images = [preprocess(image.convert("RGB")) for image in examples["image"]]
    return {"images": images}


torch.manual_seed(0)
dataset.set_transform(transform)
train_dataloader = torch.utils.data.DataLoader(dataset, batch_size=config.train_batch_size, shuffle=True)

model = UNet2DModel(
    sample_size=config.image_size,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(32, 32, 32, 32, 64, 64),
    down_block_types=(
        "DownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
    ),
    up_block_types=(
        "UpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
    ),
)
sample_image = dataset[0]["images"].unsqueeze(0)
assert model(sample_image, timestep=0).sample.shape == sample_image.shape == (1, 3, 32, 32)

noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
noise = torch.randn(sample_image.shape)
timesteps = torch.LongTensor([50])
noisy_image = noise_scheduler.add_noise(sample_image, noise, timesteps)
shown = Image.fromarray(((noisy_image.permute(0, 2, 3, 1) + 1.0) * 127.5).type(torch.uint8).numpy()[0])
assert shown.size == (32, 32)
noise_pred = model(noisy_image, timesteps).sample
assert F.mse_loss(noise_pred, noise).isfinite()

optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
lr_scheduler = get_cosine_schedule_with_warmup(
    optimizer=optimizer,
    num_warmup_steps=config.lr_warmup_steps,
    num_training_steps=(len(train_dataloader) * config.num_epochs),
)


def evaluate(config, epoch, pipeline):
    images = pipeline(
        batch_size=config.eval_batch_size, generator=torch.manual_seed(config.seed), num_inference_steps=3
    ).images
    side = math.isqrt(len(images))
    test_dir = os.path.join(config.output_dir, "samples")
    os.makedirs(test_dir, exist_ok=True)
    make_image_grid(images, rows=side, cols=side).save(f"{test_dir}/{epoch:04d}.png")


def create_repo(repo_id, exist_ok):
    return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")


def upload_folder(**options):
    UPLOADS.append(options)


def train_loop(config, model, noise_scheduler, optimizer, train_dataloader, lr_scheduler):
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with="tensorboard",
        project_dir=os.path.join(config.output_dir, "logs"),
    )
    if accelerator.is_main_process:
        os.makedirs(config.output_dir, exist_ok=True)
        if config.push_to_hub:
            repo_id = create_repo(repo_id=config.hub_model_id or Path(config.output_dir).name, exist_ok=True).repo_id
        accelerator.init_trackers("train_example")
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    global_step = 0
    for epoch in range(config.num_epochs):
        progress_bar = tqdm(total=len(train_dataloader), disable=not accelerator.is_local_main_process)
        progress_bar.set_description(f"Epoch {epoch}")
        for batch in train_dataloader:
            clean_images = batch["images"]
            noise = torch.randn(clean_images.shape, device=clean_images.device)
            bs = clean_images.shape[0]
            timesteps = torch.randint(
                0, noise_scheduler.config.num_train_timesteps, (bs,), device=clean_images.device, dtype=torch.int64
            )
            noisy_images = noise_scheduler.add_noise(clean_images, noise, timesteps)
            with accelerator.accumulate(model):
                noise_pred = model(noisy_images, timesteps, return_dict=False)[0]
                loss = F.mse_loss(noise_pred, noise)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            progress_bar.update(1)
            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0], "step": global_step}
            LOSSES.append(logs["loss"])
            progress_bar.set_postfix(**logs)
            accelerator.log(logs, step=global_step)
            global_step += 1
        if accelerator.is_main_process:
            pipeline = DDPMPipeline(unet=accelerator.unwrap_model(model), scheduler=noise_scheduler)
            if (epoch + 1) % config.save_image_epochs == 0 or epoch == config.num_epochs - 1:
                evaluate(config, epoch, pipeline)
            if (epoch + 1) % config.save_model_epochs == 0 or epoch == config.num_epochs - 1:
                if config.push_to_hub:
                    upload_folder(
                        repo_id=repo_id,
                        folder_path=config.output_dir,
                        commit_message=f"Epoch {epoch}",
                        ignore_patterns=["step_*", "epoch_*"],
                    )
                else:
                    pipeline.save_pretrained(config.output_dir)


args = (config, model, noise_scheduler, optimizer, train_dataloader, lr_scheduler)
notebook_launcher(train_loop, args, num_processes=1)
rates = lr_scheduler.get_last_lr()
config.push_to_hub, config.num_epochs = True, 1
train_loop(*args)
print(json.dumps({"losses": LOSSES, "rate": rates[0], "uploads": UPLOADS, "library": UNet2DModel.__module__}))
