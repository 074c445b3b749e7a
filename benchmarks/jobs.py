"""Chain side by side: images per second of K of them together, each with its share of the cores, as --jobs K has it.

One of these alone is timed too: K times that is what K could bring, did they share nothing.

    python -m benchmarks.jobs                  # ResNet-20, batch 128, students
    python -m benchmarks.jobs --resnet 18 --batch 16

One process with all cores is timed in turn with K processes that begin together; time ends with the last. Leave the
machine alone meanwhile.
"""

import itertools
import os
import statistics
import time

from benchmarks.options import DEPTHS, Parser, positive
from benchmarks.variants import ENGINE, Job, Process

IMAGES = 4096  # of a burst: so many that how unevenly two of them end matters little


def main() -> None:
    """Print images/s for one chain and for K, and their ratio: median and range over the rounds."""
    parser = Parser("jobs", __doc__)
    parser.add_argument("--resnet", type=int, choices=DEPTHS, default=20, help="depth [default: 20]")
    parser.add_argument("--batch", type=positive, default=128, help="images per update [default: 128]")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="K [default: the number of cores]")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds [default: 7]")
    options = parser.parse_args()
    cores = os.cpu_count()
    sides = []
    share = max(1, cores // options.jobs)
    for k, threads in ((1, cores), (options.jobs, share), (1, share)):
        job = Job(options.resnet, options.batch, True, max(1, IMAGES // options.batch), "cpu", threads)
        sides.append([Process(job, ENGINE[0]) for _ in range(k)])
    rates = [[images_per_second(side, job.images) for side in sides] for _ in range(options.rounds)]
    for process in itertools.chain(*sides):
        process.end()
    ratios = [together / one for one, together, _ in rates]
    most = statistics.median(options.jobs * alone / one for one, _, alone in rates)
    one, together, alone = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"ResNet-{options.resnet}, batch {options.batch}: one chain with {cores} threads {one:.0f} images/s, "
        f"{options.jobs} side by side {together:.0f}; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), at most {most:.2f} by one of them alone ({alone:.0f} images/s)"
    )


def images_per_second(side: list[Process], images: int) -> float:
    """Of processes that train a burst of so many images each, together."""
    started = time.perf_counter()
    for process in side:
        process.begin()
    for process in side:
        process.wait()
    return len(side) * images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
