"""Using a model: pictures in, pictures out."""
