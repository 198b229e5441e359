"""Membership inference against the real training step."""
