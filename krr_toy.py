"""The toy experiment: kernel ridge self-distillation in closed form. See ``python krr_toy.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from distill.kernel.toy.program import main
    except KeyboardInterrupt:  # while modules are loaded
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())
