"""
The search by hand for the entries of hyperparams/r2vpo.yml: trainings with other hyperparameters, on seeds below the table's.

    python benchmarks/entries_search.py run --environment Walker2d-v5 --seeds 1 2 --changes '{"batch_size": 32}'
    python benchmarks/entries_search.py report    # everything that was tried, in docs/tuned_search.md

`run` appends each finished training to benchmarks/results/entries_search.jsonl, resumable.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from protocol import NOT_LEARNING, defaults_of
from readme import DOCS, replace_in
from report import table
from runs import Record, read
from tuned import ENVIRONMENTS, FIRST_SEED, has_present_defaults, run_all, training_of
from zoo_training import Training, as_json, entry

from sb3_r2vpo import R2VPO

RESULTS = Path(__file__).parent / "results" / "entries_search.jsonl"
REPORT = DOCS / "tuned_search.md"


def run_missing(trainings: list[Training], results: Path, n_jobs: int) -> None:
    """
    Run what the results lack.

    :param trainings: The trainings
    :param results: The results file
    :param n_jobs: How many side by side, each with one thread
    """
    # Changes were to the entry of their day: the whole entry is compared
    present = [record for record in read(results) if has_present_defaults(record)]
    done = [(training_of(record)._replace(changes={}), record["entry"]) for record in present]
    run_all([t for t in trainings if (t._replace(changes={}), as_json(entry(t))) not in done], results, n_jobs)


def write_report(records: list[Record]) -> None:
    """
    :param records: The results
    """
    sections = []
    for environment in ENVIRONMENTS:
        mine = [record for record in records if record["environment"] == environment]
        if mine:
            millions = sum(record["timesteps"] for record in mine) / 1e6
            heading = f"## {environment}\n\n{len(mine)} trainings, {millions:.1f}M steps."
            sections.append(f"{heading}\n\n{settings_table(mine, as_json(entry(Training(environment, 'r2vpo', 0))))}")
    replace_in(REPORT, "search", "\n\n".join(sections))


def settings_table(records: list[Record], present: dict[str, Any]) -> str:
    """
    :param records: Trainings in one environment
    :param present: Its entry
    :return: Each setting that was tried, the best mean first, with the return of each seed
    """
    settings: dict[str, list[Record]] = {}
    for record in records:
        where = ", on EnvPool" if record.get("envpool") else ""
        settings.setdefault(difference(record["entry"], present) + where, []).append(record)
    rows = []
    for name, tried in sorted(settings.items(), key=lambda item: -mean_of(item[1])):
        seeds = ", ".join(f"{r['mean_return']:,.0f} ({r['seed']})" for r in sorted(tried, key=lambda r: r["seed"]))
        days = sorted({record["date"] for record in tried})
        rows.append((name, [f"{mean_of(tried):,.0f}", seeds, " to ".join(dict.fromkeys((days[0], days[-1])))]))
    return table("differs from the present entry in", ["mean", "return (seed)", "date"], rows)


def mean_of(records: Iterable[Record]) -> float:
    """
    :param records: Trainings
    :return: Mean of their returns
    """
    return float(np.mean([record["mean_return"] for record in records]))


def difference(tried: dict[str, Any], present: dict[str, Any]) -> str:
    """
    :param tried: Hyperparameters of a training
    :param present: The entry as it is now
    :return: The values that are others, in words
    """
    defaults = as_json(defaults_of(R2VPO))
    tried, present = {**defaults, **tried}, {**defaults, **present}
    names = [name for name in {**present, **tried} if tried.get(name) != present.get(name) and name not in NOT_LEARNING]
    return ", ".join(f"`{name}: {tried.get(name)}`" for name in names) or "**the entry**"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--environment", choices=ENVIRONMENTS, help="what `run` trains in")
    parser.add_argument("--changes", type=json.loads, default={}, help="hyperparameters that differ from the entry, JSON")
    parser.add_argument("--envpool", action="store_true", help="search on EnvPool's environments, which are faster")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help=f"those from {FIRST_SEED} on are the table's")
    parser.add_argument("--n-jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the results file")
    args = parser.parse_args()
    if args.command == "report":
        write_report(read(args.results))
    elif args.environment is None:
        parser.error("--environment must say what to train in")
    else:
        trainings = [Training(args.environment, "r2vpo", seed, args.changes, envpool=args.envpool) for seed in args.seeds]
        run_missing(trainings, args.results, args.n_jobs)
