"""The quality of synthetic images: utility, fidelity and memorisation."""
