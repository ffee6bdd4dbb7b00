"""
The hyperparameters of R2VPO beside RL Zoo's of PPO and TRPO: RL Zoo's budgets, environments and evaluation.

    python benchmarks/tuned.py run       # appends each finished run to benchmarks/results/tuned.jsonl, resumable
    python benchmarks/tuned.py report    # tables in docs/tuned.md and README.md, picture in docs/images
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import save
from matplotlib.figure import Figure
from readme import DOCS, README, replace_in
from report import table
from runs import Record, read, run_side_by_side
from zoo_training import Training, as_json, defaults, entry

RESULTS = Path(__file__).parent / "results" / "tuned.jsonl"
REPORT = DOCS / "tuned.md"
ALGORITHMS = ("r2vpo", "ppo", "trpo")
LABELS = {"r2vpo": "R2VPO", "ppo": "PPO (SB3)", "trpo": "TRPO (sb3-contrib)"}
COLORS = {"r2vpo": "#D55E00", "ppo": "#000000", "trpo": "#E69F00"}
MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5")
BOX2D = ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3")
CLASSIC = ("Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1", "Acrobot-v1", "MountainCar-v0")
ENVIRONMENTS = (*MUJOCO, *BOX2D, *CLASSIC)
#: The searches use seeds below
FIRST_SEED = 100


def n_seeds(environment: str) -> int:
    """
    :param environment: Its id
    :return: How many seeds are run of each algorithm
    """
    return 10 if environment in CLASSIC else 5


def is_compiled(environment: str, algorithm: str, seed: int) -> bool:
    """
    SB3's PPO is slow on MuJoCo and Box2D. There it trains the first seed, whose time counts, and what computes the same,
    faster (tested in tests/test_benchmark_tuned.py), the others.

    :param environment: Its id
    :param algorithm: RL Zoo's name of it
    :param seed: A seed
    :return: Whether it goes through R2VPO's compiled gradient step and rollouts
    """
    return algorithm == "ppo" and environment not in CLASSIC and seed > FIRST_SEED


def all_trainings(args: argparse.Namespace) -> list[Training]:
    """
    :param args: What to choose
    :return: The trainings of the table, seeds outermost
    """
    return [
        Training(environment, algorithm, FIRST_SEED + i, compiled=is_compiled(environment, algorithm, FIRST_SEED + i))
        for i in range(10)
        for environment in args.environments
        if i < n_seeds(environment)
        for algorithm in args.algorithms
    ]


def load(results: Path) -> list[Record]:
    """
    :param results: The results file
    :return: Its records, without those of hyperparameters or defaults that are not the present ones
    """
    records = read(results)
    current = [record for record in records if is_current(record)]
    if len(current) < len(records):
        print(f"{results.name}: {len(records) - len(current)} runs of earlier entries do not count", file=sys.stderr)
    return current


def is_current(record: Record) -> bool:
    """
    :param record: A record
    :return: Whether it would still be run with these hyperparameters
    """
    return bool(record["entry"] == as_json(entry(training_of(record)))) and has_present_defaults(record)


def has_present_defaults(record: Record) -> bool:
    """
    :param record: A record
    :return: Whether R2VPO's defaults are still what they were; early records do not have them
    """
    return all(record.get(what, now) == now for what, now in defaults(training_of(record)).items())


def training_of(record: Record) -> Training:
    """
    :param record: A record
    :return: What it is of
    """
    return Training(**{field: record[field] for field in Training._fields if field in record})


def run_missing(trainings: list[Training], results: Path, n_jobs: int) -> None:
    """
    Run what the results lack, in the order given.

    :param trainings: The trainings
    :param results: The results file
    :param n_jobs: How many side by side, each with one thread
    """
    done = [training_of(record) for record in load(results)]
    run_all([training for training in trainings if training not in done], results, n_jobs)


def run_all(trainings: list[Training], results: Path, n_jobs: int) -> None:
    """
    :param trainings: The trainings
    :param results: The results file, to which each is appended
    :param n_jobs: How many side by side, each with one thread
    """
    steps = [float(entry(training)["n_timesteps"]) / 1e6 for training in trainings]
    run_side_by_side(trainings, steps, results, n_jobs, "zoo_training.py")


def write_report(records: list[Record]) -> None:
    """
    :param records: The results
    """
    environments = [e for e in ENVIRONMENTS if any(record["environment"] == e for record in records)]
    if not environments:
        raise SystemExit("There are no results yet")
    draw(records, environments)
    replace_in(REPORT, "tuned", returns_table(records, environments) + "\n\n" + times_table(records, environments))
    replace_in(README, "tuned", returns_table(records, environments))


def values(records: list[Record], environment: str, algorithm: str, field: str) -> np.ndarray:
    """
    :param records: The results
    :param environment: Its id
    :param algorithm: RL Zoo's name of it
    :param field: Of the records
    :return: Its value for each seed
    """
    mine = (record for record in records if record["environment"] == environment and record["algorithm"] == algorithm)
    return np.array([record[field] for record in mine])


def is_tuned(records: list[Record], environment: str) -> bool:
    """
    What earns an entry of R2VPO its ``# Tuned``.

    :param records: The results
    :param environment: Its id
    :return: Whether all seeds of all algorithms are there, and R2VPO's mean is not behind the better of the others by
        more than its standard error
    """
    returns = {algorithm: values(records, environment, algorithm, "mean_return") for algorithm in ALGORITHMS}
    if any(len(of_seeds) < n_seeds(environment) for of_seeds in returns.values()):
        return False
    ours = returns.pop("r2vpo")
    standard_error = ours.std(ddof=1) / np.sqrt(len(ours))
    return bool(ours.mean() + standard_error >= max(of_seeds.mean() for of_seeds in returns.values()))


def returns_table(records: list[Record], environments: Sequence[str], labels: dict[str, str] = LABELS) -> str:
    """
    :param records: The results
    :param environments: Those that have any
    :param labels: The heading for each algorithm
    :return: Mean, spread and worst seed of the deterministic policy's return
    """

    def cell(returns: np.ndarray) -> str:
        if len(returns) == 0:
            return "–"
        if len(returns) == 1:
            return f"{returns[0]:,.0f} (1 seed)"
        return f"{returns.mean():,.0f} ± {returns.std():,.0f}, worst {returns.min():,.0f} ({len(returns)} seeds)"

    rows = [(e, [cell(values(records, e, algorithm, "mean_return")) for algorithm in labels]) for e in environments]
    return table("mean return, deterministic", labels.values(), rows)


def times_table(records: list[Record], environments: Sequence[str], labels: dict[str, str] = LABELS) -> str:
    """
    :param records: The results
    :param environments: Those that have any
    :param labels: The heading for each algorithm
    :return: Timesteps, and median minutes of training, by each algorithm's own code
    """

    own_code = [record for record in records if not record.get("compiled")]

    def cell(environment: str, algorithm: str) -> str:
        steps, wall, cpu = (
            values(own_code, environment, algorithm, field) for field in ("timesteps", "wall_seconds", "cpu_seconds")
        )
        if len(steps) == 0:
            return "–"
        return f"{np.median(wall) / 60:.1f} ({np.median(cpu) / 60:.1f}) for {np.median(steps):,.0f} steps"

    rows = [(e, [cell(e, algorithm) for algorithm in labels]) for e in environments]
    return table("minutes of training (CPU minutes)", labels.values(), rows)


def draw(records: list[Record], environments: list[str]) -> None:
    """
    :param records: The results
    :param environments: Those that have any
    """
    columns = min(len(environments), 5)
    lines = -(-len(environments) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.4 * lines), layout="constrained")
    for i, environment in enumerate(environments):
        ax = figure.add_subplot(lines, columns, i + 1, title=environment)
        for x, algorithm in enumerate(ALGORITHMS):
            returns = values(records, environment, algorithm, "mean_return")
            ax.plot(np.full(len(returns), x), returns, "o", color=COLORS[algorithm], alpha=0.5, markersize=4)
            ax.hlines(returns.mean() if len(returns) else [], x - 0.3, x + 0.3, color=COLORS[algorithm])
        ax.set_xticks(range(len(ALGORITHMS)), [name.upper() for name in ALGORITHMS], fontsize=8)
        ax.set_xlim(-0.5, len(ALGORITHMS) - 0.5)
    save(figure, "tuned")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--n-jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the results file")
    args = parser.parse_args()
    if args.command == "run":
        run_missing(all_trainings(args), args.results, args.n_jobs)
    else:
        write_report(load(args.results))


if __name__ == "__main__":
    main()
