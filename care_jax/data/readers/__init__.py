"""One file a public data set: its files, their rows, and the parsing of a row."""
