"""Features to scores: models read from their files, the repository of names and versions, batching."""
