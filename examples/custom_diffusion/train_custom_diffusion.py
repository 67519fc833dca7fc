"""Custom Diffusion: `accelerate launch train_custom_diffusion.py --help` lists the flags, README.md shows runs."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("custom_diffusion")
