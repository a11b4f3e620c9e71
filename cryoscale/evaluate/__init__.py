"""Picks, clusters and label volumes scored against truth, each beside what chance would score."""
