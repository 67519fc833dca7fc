"""Training of InstructPix2Pix: `accelerate launch train_instruct_pix2pix.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("instruct_pix2pix")
