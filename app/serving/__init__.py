"""Features to scores: read model files, keep the served versions, reload them, and score requests in batches."""
