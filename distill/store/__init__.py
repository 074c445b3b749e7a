"""What a run leaves on disk: atomic writes, results, the run directory. Imports no torch."""
