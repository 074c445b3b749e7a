"""What a command will cost on this machine, before it is run: `self_distiller.py --estimate` by another name.

python -m benchmarks.cost configs/paper.toml --device cuda --jobs auto
python -m benchmarks.cost --resnet 18 --alpha 0 0.35 --seed 1 2 3
"""

import sys

from distill.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    for i, word in enumerate(words):
        if word.endswith(".toml") and words[max(i - 1, 0)] != "--config":
            words[i : i + 1] = ["--config", word]
            break
    raise SystemExit(main([*words, "--estimate"]))
