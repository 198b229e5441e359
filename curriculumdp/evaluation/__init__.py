"""How good the synthetic images are, what they cost in privacy, and how runs compare."""
