"""What the training recipes achieve on the picturebook: each module draws data, trains by a recipe and judges."""
