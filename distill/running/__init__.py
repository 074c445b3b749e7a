"""Whole runs: execution of their chains, cost, progress and preview."""

from distill.environment import set_environment

set_environment()  # before a module of this package loads torch
