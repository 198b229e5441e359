"""What the kernels can carry, as plain numbers: whoever checks options before torch is there reads them too."""

# Inside these no scale overflows fp32, and squares that underflow it (with denormals flushed, too) are far below
# the margin of `grid.AIM`.
MIN_CLIP_NORM, MAX_CLIP_NORM = 2.0**-24, 2.0**40
# A float64 holds every integer up to 2^53: so many units of at most 2^36 (the grid's C) are summed exactly in it.
MAX_UNITS = 2 ** (53 - 36) - 1
