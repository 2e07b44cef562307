"""Training: the loop, its step, its schedule and what a run leaves on disk."""
