"""Fine-tuning on pictures with captions: `accelerate launch train_text_to_image.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("text_to_image")
