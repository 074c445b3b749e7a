"""The toy experiment: kernel ridge self-distillation in closed form. See ``python krr_toy.py --help``."""

import os
import sys

if __name__ == "__main__":
    if sys.flags.safe_path:  # PYTHONSAFEPATH: Python has left out this file's folder
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from distill.starting import krr_toy

    sys.exit(krr_toy())
