"""The device programs of a step, the host's part of it, and how a table of both is compiled and walked."""
