"""What may leave a run: the release folder, its certificate, and what checks it."""
