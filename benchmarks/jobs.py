"""Chains side by side: images per second of K processes together, each with its share of the cores, as in ``--jobs K``.

    python -m benchmarks.jobs                  # ResNet-20, batch 128, students
    python -m benchmarks.jobs --resnet 18 --batch 16

One process with all cores and K processes that begin together are timed in turn; the time ends with the last of them.
One of the K processes is timed alone too: K times its rate would be reached if the processes shared nothing. Leave the
machine alone meanwhile.
"""

import itertools
import statistics
import time

from benchmarks.options import DEPTHS, Parser, positive
from benchmarks.variants import ENGINE, Process, Workload
from distill.environment import available_cores

IMAGES = 4096  # in a burst: long enough that processes ending at different times matter little


def main() -> None:
    """Print images/s of one chain and of K, and their ratio: median and range over the rounds."""
    cores = available_cores()
    parser = Parser("jobs", __doc__)
    parser.add_argument("--resnet", type=int, choices=DEPTHS, default=20, help="depth [default: 20]")
    parser.add_argument("--batch", type=positive, default=128, help="images per update [default: 128]")
    parser.add_argument("--jobs", type=positive, default=cores, help="K [default: the number of cores]")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds [default: 7]")
    options = parser.parse_args()
    share = max(1, cores // options.jobs)
    updates = max(1, IMAGES // options.batch)
    groups = []
    for processes, threads in ((1, cores), (options.jobs, share), (1, share)):
        work = Workload(options.resnet, options.batch, True, updates, "cpu", threads)
        groups.append([Process(work, ENGINE[0]) for _ in range(processes)])
    rates = [[images_per_second(group, work.images) for group in groups] for _ in range(options.rounds)]
    for process in itertools.chain(*groups):
        process.end()
    ratios = [together / one for one, together, _ in rates]
    bound = statistics.median(options.jobs * alone / one for one, _, alone in rates)
    one, together, alone = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"ResNet-{options.resnet}, batch {options.batch}: one chain with {cores} threads {one:.0f} images/s, "
        f"{options.jobs} side by side {together:.0f}; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), at most {bound:.2f} by one of them alone ({alone:.0f} images/s)"
    )


def images_per_second(processes: list[Process], images: int) -> float:
    """The joint rate of processes that begin together and train so many images each."""
    started = time.perf_counter()
    for process in processes:
        process.begin()
    for process in processes:
        process.wait()
    return len(processes) * images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
