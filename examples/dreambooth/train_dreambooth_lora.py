"""DreamBooth as a LoRA: `accelerate launch train_dreambooth_lora.py --help` lists the flags, README.md shows runs."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("dreambooth_lora")
