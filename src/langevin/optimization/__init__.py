"""How networks are trained and run faster: acts on modules and optimizers, knows no family of models."""
