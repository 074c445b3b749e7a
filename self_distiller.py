"""Train a self-distillation chain: ``python self_distiller.py --help``."""

import os
import sys

if __name__ == "__main__":
    if sys.flags.safe_path:  # PYTHONSAFEPATH: Python has left out this file's folder
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from distill.starting import self_distiller

    sys.exit(self_distiller())
