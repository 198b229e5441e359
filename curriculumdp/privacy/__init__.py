"""Numbers only: events, accounting, randomness, the grid, the ledger. Knows no image and no network."""
