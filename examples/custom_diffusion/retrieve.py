"""Real pictures of a class by their captions: `python retrieve.py --help` lists the flags, README.md shows a run."""

from langevin.training.recipes import script
from langevin.training.recipes.retrieve import run

if __name__ == "__main__":
    script(run)
