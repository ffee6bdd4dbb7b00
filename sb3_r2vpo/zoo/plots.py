"""RL Zoo's plots as picture files."""

import argparse
import itertools
import pickle
import re
import warnings
from pathlib import Path

import numpy as np

from sb3_r2vpo.zoo.screen import has_screen

#: Folder of the pictures
PICTURES = Path("plots")


def save_shown_figures(command: str) -> None:
    """
    Make matplotlib's ``show`` write the pictures, before it opens their windows where there is a screen.

    :param command: The command that draws them, what the files are named after
    """
    from matplotlib import pyplot as plt

    show = plt.show

    def save_and_show() -> None:
        figures = [figure for figure in map(plt.figure, plt.get_fignums()) if any(ax.has_data() for ax in figure.axes)]
        if not figures:
            raise ValueError("There is nothing to draw: no such run, or too few episodes (--episode-window) or evaluations")
        PICTURES.mkdir(exist_ok=True)
        for figure in figures:
            title = re.sub(r"[^\w-]+", "_", str(figure.get_label()) or f"{figure.number}")
            picture = PICTURES / f"{command}_{title}.png"
            figure.savefig(picture, dpi=120, bbox_inches="tight")
            print(f"Picture: {picture}")
        if has_screen():
            show()
        plt.close("all")

    setattr(plt, "show", save_and_show)  # noqa: B010
    # Empty legends are told of above
    warnings.filterwarnings("ignore", "No artists with labels found")


def check_evaluated(arguments: list[str]) -> None:
    """
    :param arguments: Arguments of ``all_plots``
    :raises ValueError: When one of the algorithms was never evaluated on one of the environments: it would get a zero
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for short, name in (("-a", "--algos"), ("-e", "--env"), ("-f", "--exp-folders")):
        parser.add_argument(short, name, nargs="+", default=[])
    given, _ = parser.parse_known_args(arguments)
    for algo, env in itertools.product(given.algos, given.env):
        # As `all_plots` looks for them
        if not any(list(Path(folder, algo.lower()).glob(f"*{env}*/evaluations.npz")) for folder in given.exp_folders):
            raise ValueError(
                f"`--algos` has {algo}, but {' and '.join(given.exp_folders)} has no evaluation of it on {env}: "
                f"leave it out, or train it (r2vpo train --algo {algo} --env {env})"
            )


def check_runs(saved_results: str) -> None:
    """
    :param saved_results: What ``all_plots`` has saved
    :raises ValueError: When something in it was run once only: `plot_from_file` is about the spread between runs
    """
    path = Path(saved_results if saved_results.endswith(".pkl") else f"{saved_results}.pkl")
    with open(path, "rb") as file:
        results = pickle.load(file)
    for env, curves in results.items():
        for name, curve in curves.items():
            if env != "results_table" and np.ndim(curve["last_evals"]) == 0:
                raise ValueError(f"`--input` is {path}, with a single run of {name} on {env}: it must be two or more of each")
