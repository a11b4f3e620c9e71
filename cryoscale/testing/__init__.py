"""Public helpers for tests: phantoms, hypothesis strategies, contract suites, faulty stores."""
