"""The networks, one file each, and the registry that builds them from a dictionary."""
