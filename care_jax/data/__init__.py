"""Training data: readers of public sets, preparing them, loading them into batches, and the embedded task."""
