"""One training: its request, its stages, what watches over it, and its checkpoints."""
