"""The stages: each reads earlier artifacts, writes exactly one kind, and never calls another stage."""
