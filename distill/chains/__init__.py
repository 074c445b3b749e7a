"""The algorithm: teacher, student, student, ... and Algorithm 1, which estimates alpha."""
