"""Devices: the mesh, the division of arrays among them, communication, and several processes."""
