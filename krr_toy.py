"""The toy experiment: kernel ridge self-distillation in closed form. See ``python krr_toy.py --help``."""

import sys

if __name__ == "__main__":
    from distill.starting import krr_toy

    sys.exit(krr_toy())
