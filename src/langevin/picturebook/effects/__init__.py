"""What the training recipes achieve, measured on the picturebook: each module draws data, trains by a recipe, judges."""
