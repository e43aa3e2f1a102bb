"""Rewards: response formats, span masks, answer verifiers and their worker pool, and the judging of rollouts."""
