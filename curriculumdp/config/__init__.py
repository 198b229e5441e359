"""A run's options, their checks, and the file they are read from."""
