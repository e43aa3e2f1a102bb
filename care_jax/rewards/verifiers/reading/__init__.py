"""Readers of text that the verifiers share: wrapping to strip, numerals, roots, units, whole quantities."""
