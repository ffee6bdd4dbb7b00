"""
The dual variable, studied: its way from several starts, what each algorithm's knob does, where the ratio goes.

    python benchmarks/dual_dynamics.py run       # appends each finished run to benchmarks/results/, resumable
    python benchmarks/dual_dynamics.py report    # tables and pictures in docs/dual_dynamics.md

The knobs are at the same time the search by which `protocol.ALGORITHMS` was set: the same grid for each, the same two tasks.
"""

import argparse
from pathlib import Path
from typing import Any

from dual_figures import write_report
from protocol import ALGORITHMS, REGIMES, Run
from runs import Record, common_changes, load, run_arguments, run_missing

RESULTS = Path(__file__).parent / "results" / "dual_dynamics.jsonl"
#: The probe's records are of another kind
PROBED = RESULTS.with_name("ratios.jsonl")
#: The learning benchmark's, whose runs are looked at here too
TRAINED = RESULTS.with_name("learning.jsonl")
TWO_TASKS = ("CheetahRun", "FingerSpin")
#: What is run without being asked for another
DEFAULT_REGIMES = ("small_staggered", "large_staggered")
#: Of λ, from its lower bound to its upper one
STARTS = ("auto_0.15", "auto_0.3", "auto_1.0", "auto_2.0")
#: Each algorithm's own knob, over two orders of magnitude where it has them. SPO's best is not on the grid of the others
KNOBS: dict[str, tuple[str, tuple[float, ...]]] = {
    "R2VPO": ("target_var", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "R2VPO fixed 1": ("var_coef", (0.1, 0.3, 0.5, 1.0, 2.0, 5.0)),
    "PPO 0.2": ("clip_range", (0.03, 0.1, 0.2, 0.3, 1.0)),
    "SPO 0.2": ("clip_range", (0.03, 0.1, 0.2, 0.3, 0.4, 0.8, 1.0)),
    "TRPO": ("target_kl", (0.001, 0.003, 0.01, 0.03, 0.1)),
}
LOOKED_AT = ("PPO 0.2", "R2VPO fixed 1", "R2VPO")
#: What is run: algorithms and their changes
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "knobs": [(algorithm, {knob: value}) for algorithm, (knob, values) in KNOBS.items() for value in values],
    "starts": [("R2VPO", {"var_coef": start}) for start in STARTS],
    "ratios": [(algorithm, {}) for algorithm in LOOKED_AT],
}


def runs_of(args: argparse.Namespace, variants: list[tuple[str, dict[str, Any]]]) -> list[Run]:
    """
    :param args: What to choose
    :param variants: Algorithms and their changes
    :return: The runs, seeds outermost
    """
    return [
        Run(task, regime, algorithm, seed, {**common_changes(args), **change})
        for seed in args.seeds
        for regime in args.regimes
        for task in args.tasks
        for algorithm, change in variants
    ]


def of_the_study(record: Record) -> Record:
    """
    :param record: A run of the learning benchmark
    :return: The same as one of this study: the benchmark's algorithms differ by the value of a knob, or are R2VPO,
        which begins with λ = 1
    """
    algorithm = ALGORITHMS[record["algorithm"]]
    for name, (knob, _) in KNOBS.items():
        if ALGORITHMS[name].make is algorithm.make and knob in algorithm.arguments:
            return {**record, "algorithm": name, "changes": {knob: algorithm.arguments[knob]}}
    return {**record, "changes": {"var_coef": "auto_1.0"}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--sets", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--regimes", nargs="+", default=list(DEFAULT_REGIMES), choices=REGIMES)
    run_arguments(parser, RESULTS, TWO_TASKS, range(1))
    args = parser.parse_args()
    probed = PROBED if args.results == RESULTS else args.results.with_suffix(".ratios.jsonl")
    if args.command == "report":
        trained = load(TRAINED)
        chosen = [r for r in trained if r["task"] in args.tasks and r["seed"] in args.seeds and not r["changes"]]
        records, probes = (
            [record for record in found if record["regime"] in args.regimes]
            for found in (load(args.results) + [of_the_study(record) for record in chosen], load(probed))
        )
        write_report(records, probes, KNOBS, trained)
    else:
        for name in args.sets:
            results, script = (probed, "probe.py") if name == "ratios" else (args.results, "training.py")
            run_missing(runs_of(args, VARIANTS[name]), results, args.n_jobs, script)
