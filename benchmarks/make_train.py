"""
What `make train` ends with, seed by seed.

    python benchmarks/make_train.py run       # appends each finished run to benchmarks/results/make_train.jsonl, resumable
    python benchmarks/make_train.py report    # the table of README.md
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from protocol import defaults_of
from readme import README, replace_in
from report import table
from runs import Record, read, run_side_by_side
from training import rounded
from zoo_training import as_json

from sb3_r2vpo import R2VPO

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "make_train.jsonl"
#: What RL Zoo's benchmark publishes for its tuned PPO on HalfCheetah
MARK = 5819
MILLIONS_OF_STEPS = 3.0


class Training(NamedTuple):
    """One training."""

    seed: int


def train(training: Training) -> Record:
    """
    :param training: A training
    :return: Its record: mean return of the deterministic policy at each of RL Zoo's evaluations, each episode of the last one
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs:
        subprocess.run(["make", "train", f"SEED={training.seed}", f"LOGS={logs}"], cwd=ROOT, check=True, stdout=sys.stderr)
        wall_seconds = time.perf_counter() - start
        (file,) = Path(logs).glob("r2vpo/*/evaluations.npz")
        evaluations = np.load(file)
        (config,) = file.parent.glob("*/config.yml")
        hyperparameters = dict(yaml.load(config.read_text(), Loader=yaml.UnsafeLoader))
        timesteps, returns = evaluations["timesteps"], evaluations["results"]
    return {
        **training._asdict(),
        "hyperparameters": as_json(hyperparameters),
        "defaults": defaults_of(R2VPO),
        "date": datetime.date.today().isoformat(),
        "wall_seconds": rounded(wall_seconds),
        "timesteps": timesteps.tolist(),
        "mean_returns": [rounded(value) for value in returns.mean(axis=1)],
        "last_returns": [rounded(value) for value in returns[-1]],
    }


def load() -> list[Record]:
    """
    :return: The records, by seed, of the settings that were run last
    """
    records = read(RESULTS)
    return sorted((r for r in records if settings(r) == settings(records[-1])), key=lambda record: record["seed"])


def settings(record: Record) -> tuple[Any, Any]:
    """
    :param record: A record
    :return: What it was trained with
    """
    # Early records have no defaults, and some of them no staggered environments
    return record["hyperparameters"], record.get("defaults", record.get("stagger"))


def returns_table(records: list[Record]) -> str:
    """
    :param records: The results
    :return: Markdown: the last evaluation of each seed, and minutes
    """
    headings = ("mean of the last evaluation", "its worst episode", "best evaluation", "minutes")
    rows = []
    for record in records:
        values = (record["mean_returns"][-1], min(record["last_returns"]), max(record["mean_returns"]))
        rows.append((f"seed {record['seed']}", [*(f"{value:,.0f}" for value in values), f"{record['wall_seconds'] / 60:.1f}"]))
    n_above = sum(record["mean_returns"][-1] > MARK for record in records)
    return table("`make train`", headings, rows) + (
        f"\n\n{n_above} of {len(records)} seeds end, after 3M steps, above {MARK:,}, which RL Zoo publishes for its tuned PPO "
        "after 1M,\non an older version of the environment."
    )


def main() -> None:
    """The command line."""
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(train(Training(**json.loads(sys.argv[1])))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--seeds", nargs="+", default=list(range(15)), type=int)
    parser.add_argument("--n-jobs", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    if args.command == "run":
        done = {record["seed"] for record in load()}
        missing = [Training(seed) for seed in args.seeds if seed not in done]
        run_side_by_side(missing, [MILLIONS_OF_STEPS] * len(missing), RESULTS, args.n_jobs, Path(__file__).name)
    else:
        replace_in(README, "make_train", returns_table(load()))


if __name__ == "__main__":
    main()
