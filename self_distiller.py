"""Train a self-distillation chain: ``python self_distiller.py --help``."""

import sys

if __name__ == "__main__":
    from distill.starting import self_distiller

    sys.exit(self_distiller())
