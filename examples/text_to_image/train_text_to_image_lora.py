"""Fine-tuning on pictures with captions, as a LoRA: `accelerate launch train_text_to_image_lora.py --help` lists the flags."""

from langevin.training.recipes import main

if __name__ == "__main__":
    main("text_to_image_lora")
