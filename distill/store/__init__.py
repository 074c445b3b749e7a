"""What a run leaves on disk: results and the run directory. Imports no torch."""
