"""A run directory as tables and figures. Imports no torch."""
