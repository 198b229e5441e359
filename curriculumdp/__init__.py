"""Differentially private image diffusion models, trained by a curriculum."""
