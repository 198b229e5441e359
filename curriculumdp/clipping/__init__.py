"""Per-unit gradients and their clipped sum."""
