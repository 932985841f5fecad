"""Raw videos and annotation files made ready for training."""
