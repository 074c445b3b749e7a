"""Kernel ridge self-distillation of real data: its data, routes, tables and figures (``krr_toy.py --dataset ...``)."""
