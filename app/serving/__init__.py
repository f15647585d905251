"""Features to scores: models read from their files, the repository of those that are served, reloading, batching."""
