"""A run's options, their validation, and the file they are read from."""
