"""Kernel ridge self-distillation in closed form. The formulas need NumPy and SciPy, the estimators scikit-learn."""
