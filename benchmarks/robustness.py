"""
How far learning rate and number of epochs may be off: returns over a grid of both, R2VPO beside PPO.

    python benchmarks/robustness.py run       # appends each finished run to benchmarks/results/robustness.jsonl, resumable
    python benchmarks/robustness.py report    # docs/images/robustness.png and its table in docs/learning.md
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import save
from matplotlib.figure import Figure
from protocol import THREE_TASKS, Run
from readme import DOCS, replace_in
from report import table
from runs import Record, common_changes, load, run_arguments, run_missing
from scores import SCORES

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"
REGIME = "small"
#: PPO with the ε that is best with small updates
ALGORITHMS = ("PPO 0.1", "R2VPO")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
EPOCHS = (4, 10, 20, 40)
#: A point of the grid is on the plateau when it has at least so much of the best one's return
PLATEAU = 0.9


def all_runs(args: argparse.Namespace) -> list[Run]:
    """
    :param args: What to choose
    :return: The runs, seeds outermost
    """
    return [
        Run(task, REGIME, algorithm, seed, {**common_changes(args), "learning_rate": learning_rate, "n_epochs": n_epochs})
        for seed in args.seeds
        for task in args.tasks
        for learning_rate in LEARNING_RATES
        for n_epochs in EPOCHS
        for algorithm in ALGORITHMS
    ]


def grid(records: list[Record], algorithm: str, task: str, score: str) -> np.ndarray:
    """
    :param records: The results
    :param algorithm: Name of the algorithm
    :param task: Name of the task
    :param score: One of the ``SCORES``
    :return: Mean over seeds, NaN without results; of shape (learning rates, epochs)
    """
    returns = np.full((len(LEARNING_RATES), len(EPOCHS)), np.nan)
    for i, learning_rate in enumerate(LEARNING_RATES):
        for j, n_epochs in enumerate(EPOCHS):
            changes = {"learning_rate": learning_rate, "n_epochs": n_epochs}
            here = [r for r in records if (r["algorithm"], r["task"], r["changes"]) == (algorithm, task, changes)]
            if here:
                returns[i, j] = np.mean([SCORES[score](record) for record in here])
    return returns


def on_plateau(returns: np.ndarray, best: float) -> float:
    """
    :param returns: Of a grid
    :param best: What they are measured against
    :return: Share of the grid with at least ``PLATEAU`` of it
    """
    known = returns[~np.isnan(returns)]
    return float((known >= PLATEAU * best).mean())


#: Of a grid of returns, and the best return of all algorithms
MEASURES: dict[str, Callable[[np.ndarray, float], float]] = {
    "share within 10 % of its own best": lambda returns, _: on_plateau(returns, np.nanmax(returns)),
    "share within 10 % of the best of both": on_plateau,
    "mean, as a share of the best of both": lambda returns, best: float(np.nanmean(returns) / best),
    "lowest, as a share of the best of both": lambda returns, best: float(np.nanmin(returns) / best),
}


def plateau_table(records: list[Record], tasks: list[str]) -> str:
    """
    :param records: The results
    :param tasks: Those with results
    :return: Width of the plateau of each algorithm, under its own best and under the best of all, and how high the grid is
    """
    rows = []
    for score in SCORES:
        grids = {(a, task): grid(records, a, task, score) for a in ALGORITHMS for task in tasks}
        best = {task: max(np.nanmax(grids[a, task]) for a in ALGORITHMS) for task in tasks}
        for name, measure in MEASURES.items():
            cells = [shares_cell([measure(grids[a, task], best[task]) for task in tasks]) for a in ALGORITHMS]
            rows.append((f"{name}, {score}", cells))
    return table(f"of the grid, mean over tasks ({', '.join(tasks)})", ALGORITHMS, rows)


def shares_cell(shares: list[float]) -> str:
    """
    :param shares: By task
    :return: A cell
    """
    return f"{np.mean(shares):.0%} ({', '.join(f'{share:.0%}' for share in shares)})"


def draw(records: list[Record], tasks: list[str]) -> None:
    """
    :param records: The results
    :param tasks: Those with results
    """
    figure = Figure(figsize=(3.4 * len(tasks), 5), layout="constrained")
    axes = figure.subplots(len(ALGORITHMS), len(tasks), sharex=True, sharey=True, squeeze=False)
    for column, task in zip(axes.T, tasks, strict=True):
        grids = [grid(records, algorithm, task, "training policy") for algorithm in ALGORITHMS]
        best = np.nanmax(grids)
        for ax, algorithm, returns in zip(column, ALGORITHMS, grids, strict=True):
            ax.imshow(returns / best, cmap="cividis", vmin=0, vmax=1, aspect="auto")
            for (i, j), value in np.ndenumerate(returns):
                if not np.isnan(value):
                    weight = "bold" if value >= PLATEAU * best else "normal"
                    ax.text(
                        j, i, f"{value:.0f}", ha="center", va="center", color="w" if value < best / 2 else "k", weight=weight
                    )
            ax.set_title(f"{algorithm}, {task}", fontsize="medium")
            ax.set_xticks(range(len(EPOCHS)), [str(n) for n in EPOCHS])
            ax.set_yticks(range(len(LEARNING_RATES)), [f"{rate:g}" for rate in LEARNING_RATES])
    figure.supxlabel("epochs", fontsize="medium")
    figure.supylabel("learning rate", fontsize="medium")
    save(figure, "robustness")


def write_report(records: list[Record]) -> None:
    """
    :param records: The results
    """
    tasks = [task for task in THREE_TASKS if {r["algorithm"] for r in records if r["task"] == task} >= set(ALGORITHMS)]
    if not tasks:
        raise SystemExit("There are no results of both algorithms on one task yet")
    draw(records, tasks)
    n_runs = len([record for record in records if record["task"] in tasks])
    n_seeds = len({record["seed"] for record in records})
    picture = "![Return over learning rate and epochs](images/robustness.png)"
    caption = (
        f"Return of the training policy in the small regime, {n_runs} runs, at most {n_seeds} for each point and "
        "algorithm.\nBold in the picture: within 10 % of the best of both algorithms on that task. Colour: share of that best."
    )
    replace_in(DOCS / "learning.md", "robustness", "\n\n".join([picture, caption, plateau_table(records, tasks)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    run_arguments(parser, RESULTS, THREE_TASKS, range(2))
    args = parser.parse_args()
    if args.command == "run":
        run_missing(all_runs(args), args.results, args.n_jobs)
    else:
        write_report(load(args.results))
