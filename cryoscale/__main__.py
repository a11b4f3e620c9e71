"""Let `python -m cryoscale` do what the `cryoscale` command does."""

from cryoscale.cli import main

main()
