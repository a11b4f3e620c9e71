"""The world's files: MRC volumes, particle lists. Axis order and corner conventions are turned only here."""
