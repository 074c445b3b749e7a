"""Data sets as uint8 arrays in memory: reading, splitting, corrupting labels. Imports no torch."""
