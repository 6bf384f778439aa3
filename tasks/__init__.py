"""Each stage as a cached Prefect task of a few lines."""
