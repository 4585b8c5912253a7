"""A trained model: loading it, separating files with it, sharing it."""
