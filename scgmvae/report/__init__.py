"""A fit in one HTML file, and what to look at in plain words."""
