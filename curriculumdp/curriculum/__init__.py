"""Where privacy meets images: the plan of a run, its phases, and the run itself."""
