"""Stable Diffusion XL is fine-tuned as a LoRA: `python train_text_to_image_lora_sdxl.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("text_to_image_lora_sdxl")
