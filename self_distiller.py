"""Train a self-distillation chain: ``python self_distiller.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from distill.cli import main
    except KeyboardInterrupt:  # while modules are loaded
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())
