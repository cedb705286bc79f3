"""The model file, and finding and importing models."""
