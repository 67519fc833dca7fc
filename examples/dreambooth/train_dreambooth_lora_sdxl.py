"""DreamBooth for Stable Diffusion XL as a LoRA: `python train_dreambooth_lora_sdxl.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("dreambooth_lora_sdxl")
