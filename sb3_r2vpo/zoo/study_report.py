"""What a hyperparameter search leaves behind: a summary, a table, the study itself and pictures."""

import pickle
import warnings
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances


def print_summary(study: optuna.Study) -> None:
    """
    :param study: The study
    """
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    print("Trials:", ", ".join(f"{count} {state}" for state, count in states.items()) or "none")
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        print("No trial is complete, so that none of them is the best")
        return
    best = study.best_trial
    print(f"Best trial: {best.number}")
    print("Value: ", best.value)
    print("Params: ")
    for key, value in best.params.items():
        print(f"    {key}: {value}")
    print("User Attributes: ")
    for key, value in best.user_attrs.items():
        print(f"    {key}: {value}")


def write_report(study: optuna.Study, path: Path) -> dict[str, Path]:
    """
    :param study: The study
    :param path: Where to write, without the end of the name
    :return: Paths of the table of trials and of the study as a Python object, each with a label
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table, study_object = Path(f"{path}.csv"), Path(f"{path}.pkl")
    study.trials_dataframe().to_csv(table)
    # To inspect/re-use it later
    study_object.write_bytes(pickle.dumps(study))
    return {"Table of trials": table, "Study": study_object}


def draw_study(study: optuna.Study, path: Path) -> dict[str, Path]:
    """
    Draw history and importances of the hyperparameters as PNG; needs no screen.

    :param study: The study
    :param path: Where to write, without the end of the name
    :return: Paths of the pictures, each with a label; none when there are not two complete trials to compare
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        return {}
    tuned = {name for trial in complete for name, choices in trial.distributions.items() if not choices.single()}
    plt.switch_backend("agg")
    with warnings.catch_warnings(), plt.style.context("default"):
        # The pictures are experimental in Optuna; that few trials say little is seen in them
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        axes = {
            "History": plot_optimization_history(study, target_name="mean reward"),
            "Importances": plot_param_importances(study, params=sorted(tuned), target_name="mean reward"),
        }
    pictures = {}
    for label, ax in axes.items():
        figure = ax.get_figure(root=True)
        assert figure is not None
        pictures[label] = Path(f"{path}_{label.lower()}.png")
        figure.savefig(pictures[label], dpi=120, bbox_inches="tight")
        plt.close(figure)
    return pictures
