"""Schedulers: the documented names, each a short configuration of one grid, one solver and one prediction."""
