"""What was spent, written down before it is spent: one ledger per run, one per data set."""
