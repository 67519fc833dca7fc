"""Training of a network on pictures alone: `accelerate launch train_unconditional.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("unconditional")
