"""What a run takes of a TPU slice, counted and compiled before the slice is rented."""
