"""The embedded task: a small visual question answering set that is drawn on first use."""
