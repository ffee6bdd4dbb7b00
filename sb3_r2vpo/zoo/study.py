"""The trials of a hyperparameter search, which several workers may share, and how it gets to its end when some of them die."""

import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from sb3_r2vpo.zoo.study_storage import grace_period, heartbeat_interval

Objective = Callable[[optuna.Trial], float]

#: What `--max-total-trials` counts, beside the running ones
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
#: A trial in a journal is taken for dead when it has been running this many times as long as the longest finished one
STALE_AFTER_LONGEST = 3


def run_trials(study: optuna.Study, objective: Objective, n_trials: int, max_total_trials: int | None, n_jobs: int) -> None:
    """
    Run trials until there are enough of them, or until Ctrl+C.

    :param study: The study
    :param objective: Trains with the hyperparameters of a trial, returns the mean reward
    :param n_trials: How many trials this worker runs
    :param max_total_trials: How many finished trials the study ends with; counts instead of ``n_trials`` if set
    :param n_jobs: How many trials run at the same time in this process
    """
    try:
        if max_total_trials is None:
            _optimize(study, objective, n_jobs, n_trials=n_trials)
        else:
            _run_until(study, objective, max_total_trials, n_jobs)
    except KeyboardInterrupt:
        print("Interrupted: this worker ends, the trials of others go on")


def _run_until(study: optuna.Study, objective: Objective, max_total_trials: int, n_jobs: int) -> None:
    def stop_when_enough(study: optuna.Study, _: FrozenTrial) -> None:
        # In this order: a trial of another worker that ends in between is counted twice, which the loop below puts right
        if len(running(study)) + len(finished(study)) >= max_total_trials:
            study.stop()

    told: set[int] = set()
    waits = False
    while len(finished(study)) < max_total_trials:
        others = running(study)
        _tell_of_stale(study, told)
        if len(finished(study)) + len(others) < max_total_trials:
            _optimize(study, objective, n_jobs, callbacks=[stop_when_enough])
            waits = False
            continue
        # Should one of their workers die, the trial is taken up here
        if not waits:
            numbers = ", ".join(str(trial.number) for trial in others)
            print(f"Waiting for other workers, which run trial {numbers} (Ctrl+C to not wait)", flush=True)
            waits = True
        time.sleep(min(heartbeat_interval(), 10))


def _tell_of_stale(study: optuna.Study, told: set[int]) -> None:
    for trial in stale_in_journal(study):
        if trial.number not in told:
            print(
                f"Trial {trial.number} has been running since {trial.datetime_start:%Y-%m-%d %H:%M}, "
                "too long for its worker to be alive: it is not counted",
                flush=True,
            )
            told.add(trial.number)


def _optimize(
    study: optuna.Study,
    objective: Objective,
    n_jobs: int,
    n_trials: int | None = None,
    callbacks: list[Callable[[optuna.Study, FrozenTrial], None]] | None = None,
) -> None:
    left = n_trials

    def count(*_: object) -> None:
        nonlocal left
        left = None if left is None else left - 1

    while True:
        try:
            # RL Zoo collects garbage too: callbacks keep environments and model of a trial alive in a cycle
            study.optimize(objective, left, n_jobs=n_jobs, callbacks=[count, *(callbacks or [])], gc_after_trial=True)
            return
        except ValueError as e:
            # Optuna has no class for it
            if "Cannot tell a FAIL trial" not in str(e):
                raise
            print(
                "A trial of this worker was given to another one, because there had been no sign of life "
                f"for {grace_period()} s. Going on with the next one"
            )
            if not left:
                return


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """
    :param study: The study
    :return: Complete and pruned trials
    """
    return study.get_trials(deepcopy=False, states=FINISHED)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """
    In a database, trials of dead workers end here. In a journal they are left out only, see `stale_in_journal`.

    :param study: The study
    :return: Trials that some worker is running
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Optuna does it before each trial, which is too late for the last ones
        fail_stale_trials(study)
    stale = {trial.number for trial in stale_in_journal(study)}
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in trials if trial.number not in stale]


def stale_in_journal(study: optuna.Study) -> list[FrozenTrial]:
    """
    A journal knows when a trial began and not whether its worker still lives, on this machine or on another one. So
    time decides: a trial is stale that has been running three times as long as the longest finished one, and
    at least the grace period. It stays as it is, since its worker may be alive after all: then one trial more is run
    than was asked for, and nothing is lost.

    :param study: The study
    :return: Its stale trials, none when it is not in a journal
    """
    if not isinstance(study._storage, JournalStorage):
        return []
    durations = [trial.duration for trial in finished(study) if trial.duration is not None]
    if not durations:
        return []
    allowed = max(STALE_AFTER_LONGEST * max(durations), timedelta(seconds=grace_period()))
    now = datetime.now()
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in trials if trial.datetime_start is not None and now - trial.datetime_start > allowed]
