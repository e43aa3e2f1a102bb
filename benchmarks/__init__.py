"""Timings, memory and traffic of the programs, and a study of the objectives; each module is a command."""
