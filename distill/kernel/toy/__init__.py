"""The toy experiment: its data, tables, figures and program (``krr_toy.py``)."""
