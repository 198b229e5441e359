"""The sensitive images: reading them, checking them against the config, and who owns which."""
