"""Train fast feed-forward style-transfer models, and paint photographs with them."""

__version__ = "0.1.0"
