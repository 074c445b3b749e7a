"""The toy experiment: kernel ridge self-distillation in closed form. See ``python krr_toy.py --help``."""

import sys

from distill.kernel.toy.program import main

if __name__ == "__main__":
    sys.exit(main())
