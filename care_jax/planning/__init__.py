"""Memory and time of a run on a TPU slice, counted and compiled before the slice is rented."""
