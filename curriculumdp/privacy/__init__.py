"""Numbers only: knows no image and no network."""
