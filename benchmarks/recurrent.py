"""
Learning of RecurrentR2VPO beside sb3-contrib's RecurrentPPO where the velocities are hidden, with RL Zoo's hyperparameters.

    python benchmarks/recurrent.py          # appends each finished run to benchmarks/results/recurrent.jsonl, resumable
"""

import argparse
from pathlib import Path

from tuned import run_missing
from zoo_training import Training

RESULTS = Path(__file__).parent / "results" / "recurrent.jsonl"
ENVIRONMENTS = ("CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0")
ALGORITHMS = ("r2vpo_lstm", "ppo_lstm")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int)
    parser.add_argument("--n-jobs", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    trainings = [
        Training(e, algorithm, seed) for seed in args.seeds for e in args.environments for algorithm in args.algorithms
    ]
    run_missing(trainings, RESULTS, args.n_jobs)
