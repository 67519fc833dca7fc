"""Training of a ControlNet: `accelerate launch train_controlnet.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("controlnet")
