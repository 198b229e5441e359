"""Write-ahead records of what is spent: one ledger per run, one per data set."""
