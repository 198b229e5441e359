"""Per-unit gradient kernels: torch and triton only."""
