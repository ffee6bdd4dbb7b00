"""
How long RL Zoo's trainings take with R2VPO's entries and with those of SB3's PPO, side by side on one quiet machine:

    python benchmarks/entries_speed.py run       # writes benchmarks/results/entries_speed.json
    python benchmarks/entries_speed.py report    # table in docs/tuned.md

Each trains for ten seconds or more, with its whole budget ahead of it. The first two rollouts and updates, with
compilation, count once; the rest of the budget goes at the pace of what follows.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from readme import DOCS, replace_in
from report import table
from runs import Record, run_in_process
from speed import PACKAGES, machine, version_of
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm
from tuned import ENVIRONMENTS
from zoo_training import Training, set_up

RESULTS = Path(__file__).parent / "results" / "entries_speed.json"
ALGORITHMS = ("r2vpo", "ppo")
#: R2VPO compiles its gradient step with the first, the rollout's forward pass with the second
N_FIRST_ROLLOUTS = 2
#: The pace is taken over so many seconds and rollouts at least
MIN_SECONDS, MIN_ROLLOUTS = 10.0, 2
N_ENVIRONMENT_STEPS = 20_000


class Pace(NamedTuple):
    """
    What is measured.

    :param environment: Its id
    :param algorithm: RL Zoo's name of it
    """

    environment: str
    algorithm: str


class Rollouts(BaseCallback):
    """Keeps when each rollout begins, and ends the training after the last one to be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[float] = []

    def _on_rollout_start(self) -> None:
        self.begins.append(time.perf_counter())

    def _on_step(self) -> bool:
        measured = self.begins[N_FIRST_ROLLOUTS:]
        return len(measured) <= MIN_ROLLOUTS or measured[-1] - measured[0] < MIN_SECONDS


def measure(pace: Pace) -> Record:
    """
    :param pace: What to measure
    :return: It, with its seconds: of the first two rollouts with their updates, for each one after, and for the steps
        of the environments alone in one; and how many rollouts the budget has
    """
    with tempfile.TemporaryDirectory() as folder:
        manager, model = set_up(Training(pace.environment, pace.algorithm, seed=0), folder)
        step_seconds = environment_seconds(model)
        rollouts = Rollouts()
        start = time.perf_counter()
        manager.callbacks.append(rollouts)
        manager.learn(model)
        begins = rollouts.begins[N_FIRST_ROLLOUTS:]
        rollout_size = model.n_steps * model.n_envs  # type: ignore[attr-defined]
        return {
            **pace._asdict(),
            "date": date.today().isoformat(),
            "machine": machine("cpu"),
            "versions": {name: version_of(name) for name in PACKAGES},
            "n_rollouts": math.ceil(manager.n_timesteps / rollout_size),
            "first_seconds": begins[0] - start,
            "rollout_seconds": (begins[-1] - begins[0]) / (len(begins) - 1),
            "environment_seconds": step_seconds * rollout_size,
        }


def environment_seconds(model: BaseAlgorithm) -> float:
    """
    :param model: A model
    :return: Seconds that its environments take for a step of one of them, with their wrappers and the model's actions
    """
    assert model.env is not None
    observations: Any = model.env.reset()
    taken, n_vector_steps = 0.0, N_ENVIRONMENT_STEPS // model.n_envs
    for _ in range(n_vector_steps):
        actions, _ = model.predict(observations)
        start = time.perf_counter()
        observations, *_ = model.env.step(actions)
        taken += time.perf_counter() - start
    return taken / (n_vector_steps * model.n_envs)


def minutes(record: Record) -> float:
    """
    :param record: Of one environment and algorithm
    :return: Minutes for RL Zoo's budget
    """
    return (record["first_seconds"] + (record["n_rollouts"] - N_FIRST_ROLLOUTS) * record["rollout_seconds"]) / 60


def environment_minutes(record: Record) -> float:
    """
    :param record: Of one environment and algorithm
    :return: Those of them that the environments take
    """
    return record["n_rollouts"] * record["environment_seconds"] / 60


def run(environments: list[str]) -> None:
    """
    Measure, one after the other, and write the results after each environment.

    :param environments: Their ids; the file keeps the others
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"paces": []}
    for environment in tqdm(environments):
        others = [record for record in results["paces"] if record["environment"] != environment]
        measured = [run_in_process(Pace(environment, algorithm), Path(__file__).name) for algorithm in ALGORITHMS]
        results = {"paces": sorted((*others, *measured), key=lambda record: ENVIRONMENTS.index(record["environment"]))}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def minutes_table(paces: list[Record]) -> str:
    """
    :param paces: What was measured
    :return: Minutes of each algorithm, their ratio, and those of the environments alone
    """
    measured = {(record["environment"], record["algorithm"]): record for record in paces}
    rows = []
    for environment in (e for e in ENVIRONMENTS if (e, "ppo") in measured):
        ours, peers = measured[environment, "r2vpo"], measured[environment, "ppo"]
        cells = [minutes(ours), minutes(peers), minutes(ours) / minutes(peers), environment_minutes(ours)]
        rows.append((environment, [f"{x:.{digits}f}" for x, digits in zip(cells, (1, 1, 2, 1), strict=True)]))
    return table("minutes", ["R2VPO", "PPO (SB3)", "ratio", "R2VPO's environments alone"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    args = parser.parse_args()
    if args.command == "run":
        run(args.environments)
    else:
        paces = json.loads(RESULTS.read_text())["paces"]
        where = "; ".join(sorted({f"{record['machine']}, {record['date']}" for record in paces}))
        replace_in(DOCS / "tuned.md", "minutes", f"{minutes_table(paces)}\n\nMeasured on: {where}.")


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        # What RL Zoo and the libraries print is not the record
        sys.stdout, stdout = sys.stderr, sys.stdout
        print(json.dumps(measure(Pace(**json.loads(sys.argv[1])))), file=stdout)
    else:
        main()
