"""How cases are run, recorded, drawn and compared."""
