"""Evaluation: questions asked of a model, its answers scored, on held-out data and on test sets."""
