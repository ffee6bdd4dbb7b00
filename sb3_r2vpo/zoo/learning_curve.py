import io
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy, window_func

from sb3_r2vpo.files import write_file


def draw_learning_curve(run_folder: Path, title: str, window: int = 50) -> Path | None:
    """
    Draw training returns and evaluations of one RL Zoo run as a PNG; needs no screen.

    :param run_folder: Folder of the run, with the ``monitor.csv`` files and maybe ``evaluations.npz``
    :param title: Title of the picture
    :param window: Number of training episodes to average over
    :return: Path of the picture, ``None`` when not one episode has ended
    """
    try:
        steps, returns = ts2xy(load_results(str(run_folder)), X_TIMESTEPS)
    except LoadMonitorResultsError:
        return None
    except (ValueError, KeyError, IndexError, AssertionError) as e:
        # Whoever has written into these files, it is no reason to end in an error
        warnings.warn(f"There is no learning curve: the monitor files in {run_folder} cannot be read ({e})")
        return None
    if len(steps) == 0:
        return None

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    ax.scatter(steps, returns, s=3, alpha=0.25, color="tab:gray", linewidths=0, label="training episodes")
    window = min(window, len(steps))
    ax.plot(*window_func(steps, returns, window, np.mean), color="tab:red", label=f"mean of {window} episodes")
    evaluations = run_folder / "evaluations.npz"
    if evaluations.exists():
        data = np.load(evaluations)
        ax.plot(data["timesteps"], data["results"].mean(axis=1), ".-", color="tab:blue", label="evaluation")
    ax.set(title=title, xlabel="timesteps", ylabel="return")
    ax.grid(alpha=0.3)
    ax.legend()
    picture, buffer = run_folder / "learning_curve.png", io.BytesIO()
    figure.savefig(buffer, dpi=120)
    write_file(picture, buffer.getvalue())
    return picture
