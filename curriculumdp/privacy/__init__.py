"""Events, accounting, keyed randomness and the integer grid. Knows nothing of images or networks."""
