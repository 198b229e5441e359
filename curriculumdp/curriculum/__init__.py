"""The curriculum, where privacy meets images: a run's plan, its phases, and the run itself."""
