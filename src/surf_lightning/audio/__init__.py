"""Audio files: opening, reading parts, streaming, resampling, writing, indexing."""
