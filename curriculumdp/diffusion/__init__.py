"""The diffusion model (EDM, Karras et al. 2022); the one place that imports diffusers. Knows no privacy."""
