"""Langevin."""
