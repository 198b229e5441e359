"""The sensitive images: reading, checking against what is declared, and who owns which."""
