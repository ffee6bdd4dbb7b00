"""
Learning of R2VPO beside PPO, TRPO and SPO on the DeepMind Control suite, in regimes of few huge and of many small updates.

    python benchmarks/learning.py run       # appends each finished run to benchmarks/results/learning.jsonl, resumable
    python benchmarks/learning.py report    # tables and pictures in docs/learning.md, docs/learning_in_step.md and README.md
"""

import argparse
from pathlib import Path

from protocol import ALGORITHMS, REGIMES, STAGGERED, TASKS, TASKS_OF, Run
from report import write_report
from runs import common_changes, load, run_arguments, run_missing

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"


def all_runs(args: argparse.Namespace) -> list[Run]:
    """
    :param args: What to choose
    :return: The runs of the benchmark, seeds outermost: an interrupted comparison is a balanced one
    """
    return [
        Run(task, regime, algorithm, seed, common_changes(args))
        for seed in args.seeds
        for regime in args.regimes
        for task in args.tasks
        if task in TASKS_OF[regime]
        for algorithm in args.algorithms
        if seed < ALGORITHMS[algorithm].n_seeds
    ]


def parse_arguments() -> argparse.Namespace:
    """
    :return: The command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--regimes", nargs="+", default=list(STAGGERED), choices=REGIMES)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    run_arguments(parser, RESULTS, TASKS, range(5))
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    if args.command == "run":
        run_missing(all_runs(args), args.results, args.n_jobs, device=args.device)
    else:
        write_report(load(args.results))
