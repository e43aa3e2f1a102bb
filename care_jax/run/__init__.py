"""A run and its folder: opened or resumed, watched, stopped on a signal, written down."""
