"""What a researcher asks: the slow reference, and comparisons."""
