"""Train a self-distillation chain: ``python self_distiller.py --help``."""

import sys

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
