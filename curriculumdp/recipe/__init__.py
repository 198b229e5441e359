"""Recipes by rule: a run's options from what is public about it, so that nobody tunes on private images."""
