"""Static HTML of a run: figures, tables, contact sheets. Opens from a file share, without any server."""
