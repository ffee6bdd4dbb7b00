"""
Learning of RecurrentR2VPO beside sb3-contrib's RecurrentPPO where the velocities are hidden, with RL Zoo's hyperparameters.

    python benchmarks/recurrent.py run       # appends each finished run to benchmarks/results/recurrent.jsonl, resumable
    python benchmarks/recurrent.py report    # the tables of docs/contrib.md
"""

import argparse
from pathlib import Path

from readme import DOCS, replace_in
from tuned import load, returns_table, run_missing, times_table
from zoo_training import Training

RESULTS = Path(__file__).parent / "results" / "recurrent.jsonl"
ENVIRONMENTS = ("CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0")
LABELS = {"r2vpo_lstm": "RecurrentR2VPO", "ppo_lstm": "RecurrentPPO (sb3-contrib)"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int)
    parser.add_argument("--n-jobs", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    if args.command == "run":
        trainings = [
            Training(e, algorithm, seed) for seed in args.seeds for e in args.environments for algorithm in args.algorithms
        ]
        run_missing(trainings, RESULTS, args.n_jobs)
    else:
        records = load(RESULTS)
        tables = [make(records, ENVIRONMENTS, LABELS) for make in (returns_table, times_table)]
        replace_in(DOCS / "contrib.md", "recurrent", "\n\n".join(tables))
