"""The diffusion model (EDM, Karras et al. 2022); the only package that imports diffusers. Knows nothing of privacy."""
