"""Weights between Hugging Face folders and care_jax checkpoints, both ways and bit for bit."""
