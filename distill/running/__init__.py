"""Many chains: where they run, what they cost, and what a person sees meanwhile."""

from distill.environment import set_environment

set_environment()  # before a module of this package loads torch
