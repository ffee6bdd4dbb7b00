"""Trials of a search that train several times: where a training's outcome is chance, one of them says little of a trial."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from sb3_r2vpo.zoo.arguments import is_search, take

TRAININGS_PER_TRIAL = "--trainings-per-trial"


def take_trainings_per_trial(arguments: list[str]) -> tuple[list[str], int]:
    """
    :param arguments: Arguments of ``train``
    :return: The other arguments, and how many trainings a trial of a search is the mean of
    :raises ValueError: When that is not a positive number, or there is no search
    """
    value, others = take((TRAININGS_PER_TRIAL,), arguments)
    if others == arguments:
        return others, 1
    if value is None or not value.isdecimal() or int(value) < 1:
        raise ValueError(f"`{TRAININGS_PER_TRIAL}` is {value}: it must be how many trainings a trial is the mean of")
    if not is_search(others):
        raise ValueError(f"`{TRAININGS_PER_TRIAL}` is {value}, but this is no search: pass --optimize too, or leave it out")
    return others, int(value)


class OneTraining:
    """
    A trial as one of its trainings sees it: its evaluations come after those of the trainings before, at the same numbers in
    every trial. Those after the ``n_evaluations`` that were asked for (long rollouts pass the end) are not reported.

    :param trial: The trial
    :param number: Of the training, from 0 on
    :param n_evaluations: How many evaluations a training has
    """

    def __init__(self, trial: optuna.Trial, number: int, n_evaluations: int) -> None:
        self._trial = trial
        self._number = number
        self._n_evaluations = n_evaluations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def report(self, value: float, step: int) -> None:
        """
        :param value: Mean reward of an evaluation
        :param step: Its number, from 1 on
        """
        if step <= self._n_evaluations:
            self._trial.report(value, self._number * self._n_evaluations + step)


def mean_of_trainings(objective: Callable[[Any], float], trial: optuna.Trial, n_trainings: int, n_evaluations: int) -> float:
    """
    The hyperparameters are sampled once, weights and actions are drawn anew. A trial can be pruned in any of its trainings;
    Optuna's median pruner goes by the best evaluation of all of them.

    :param objective: One training, returns its mean reward
    :param trial: The trial, which remembers the mean reward of each as ``trainings``, where there are several
    :param n_trainings: How many
    :param n_evaluations: How many evaluations each has
    :return: Mean over the trainings
    """
    if n_trainings == 1:
        return objective(trial)
    rewards: list[float] = []
    for number in range(n_trainings):
        rewards.append(float(objective(OneTraining(trial, number, n_evaluations))))
        trial.set_user_attr("trainings", rewards)
    return float(np.mean(rewards))
