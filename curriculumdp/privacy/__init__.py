"""Numbers only: releases, accounting, randomness, the grid, the ledger. Knows no image and no network."""
