"""Parameters and training states on disk: saved, restored, loaded in parts, checked bit for bit."""
