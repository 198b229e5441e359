"""The limits of the kernels, as plain numbers: options are checked against them before torch is imported."""

# Between these no scale overflows fp32, and squares that underflow it (even with denormals flushed) are far below the
# margin of `grid.AIM`.
MIN_CLIP_NORM, MAX_CLIP_NORM = 2.0**-24, 2.0**40
# A float64 holds every integer up to 2^53, so it sums this many units of at most 2^36 each (the grid's C) exactly.
MAX_UNITS = 2 ** (53 - 36) - 1
