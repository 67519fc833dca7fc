"""Textual inversion: `accelerate launch textual_inversion.py --help` lists the flags, README.md shows a run."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("textual_inversion")
