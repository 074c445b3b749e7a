"""Kernel ridge self-distillation in closed form. NumPy and SciPy only."""
