import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import optuna
from optuna.samplers import BaseSampler, TPESampler
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_r2vpo.checks import reject_clip_range
from sb3_r2vpo.zoo import ALGOS, hyperparameter_file
from sb3_r2vpo.zoo.hyperparameters import check_names, check_values, named_schedules
from sb3_r2vpo.zoo.lasting import LastingExperimentManager
from sb3_r2vpo.zoo.learning_curve import draw_learning_curve
from sb3_r2vpo.zoo.masks import with_masks
from sb3_r2vpo.zoo.repeated import mean_of_trainings
from sb3_r2vpo.zoo.search_space import first_trial, trials_around
from sb3_r2vpo.zoo.study import run_trials
from sb3_r2vpo.zoo.study_report import draw_study, print_summary, write_report
from sb3_r2vpo.zoo.study_storage import find_study, find_trial, open_storage


class R2VPOExperimentManager(LastingExperimentManager):
    """
    RL Zoo's experiment manager, with R2VPO's hyperparameter file as its default one. Hyperparameters are checked before
    anything is created. A finished training draws its learning curve and says where everything is.

    A hyperparameter search survives its workers, of any algorithm, and writes its pictures; see `study`.
    """

    study_storage: optuna.storages.BaseStorage | None = None
    #: How many trainings a trial of a search is the mean of
    trainings_per_trial: ClassVar[int] = 1

    def __init__(self, args: argparse.Namespace, algo: str, *other_args: Any, **kwargs: Any) -> None:
        if algo in ALGOS and kwargs.get("config") is None:
            kwargs["config"] = str(hyperparameter_file(algo))
        super().__init__(args, algo, *other_args, **kwargs)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        RL Zoo's function of this name knows PPO's schedules only.

        :param hyperparams: The hyperparameters as they are written
        :return: The same with schedules in the place of their names
        :raises ValueError: When a string is not the name of a schedule
        """
        schedules = named_schedules(hyperparams)
        others = {key: value for key, value in hyperparams.items() if key not in schedules}
        return {**LastingExperimentManager._preprocess_schedules(others), **schedules}

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        """
        :param hyperparams: The hyperparameters of an environment
        :return: The arguments of the algorithm, and what RL Zoo has made of the other ones
        :raises ValueError: When a hyperparameter of R2VPO is missing, unknown or out of its range
        :raises TypeError: When ``clip_range`` is among them
        """
        if self.algo not in ALGOS:
            return super()._preprocess_hyperparams(hyperparams)
        # Before RL Zoo makes a schedule of it
        reject_clip_range(hyperparams.get("clip_range"))
        check_names(self.algo, set(hyperparams))
        processed = super()._preprocess_hyperparams(hyperparams)
        check_values(self.algo, processed[0], self.n_envs)
        return processed

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        self._action_space = env.action_space
        return super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of environments
        :param eval_env: Whether they are for the evaluation
        :param no_log: Whether to write no monitor file
        :return: The environments, with RL Zoo's wrappers
        """
        return with_masks(super().create_envs(n_envs, eval_env, no_log))

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: The trained model
        """
        super().save_trained_model(model)
        picture = draw_learning_curve(Path(self.save_path), title=f"{self.algo} on {self.env_name.gym_id}")
        for label, path in {
            "Model": f"{self.save_path}/{self.env_name}.zip",
            "Best model": f"{self.save_path}/best_model.zip",
            "VecNormalize statistics": f"{self.params_path}/vecnormalize.pkl",
            "Hyperparameters": f"{self.params_path}/config.yml",
            "Evaluations": f"{self.save_path}/evaluations.npz",
            "TensorBoard log": self._tensorboard_run(model),
            "Learning curve": picture,
        }.items():
            if path is not None and Path(path).exists():
                print(f"{label + ':':<25}{path}")

    @staticmethod
    def _tensorboard_run(model: BaseAlgorithm) -> str | None:
        return model.logger.get_dir() if model.tensorboard_log is not None else None

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        The hyperparameters are those of a trial when one is named, trial 0 too; those of the best one when storage and
        study are named and no search is asked for. A resumed run has its own.

        :return: The model and its hyperparameters, ``None`` when they are to be searched for
        :raises ValueError: When storage, study or trial are not what they must be
        :raises ImportError: When the driver of the database is missing
        :raises ConnectionError: When the storage cannot be reached
        """
        if self.optimize_hyperparameters and self.storage is not None:
            self.study_storage = open_storage(self.storage)
        if self.trial_id is not None or (self.storage is not None and not self.optimize_hyperparameters):
            if self.resumed_run is None:
                # As RL Zoo has it, what the command line says counts more
                self.custom_hyperparams = {**self._hyperparams_of_trial(), **(self.custom_hyperparams or {})}
            self.trial_id = None
        return super().setup_experiment()

    def _hyperparams_of_trial(self) -> dict[str, Any]:
        """
        :return: Hyperparameters of the named trial, of the best one when none is named
        :raises ValueError: When storage, study or trial are not what they must be
        :raises ImportError: When the driver of the database is missing
        :raises ConnectionError: When the storage cannot be reached
        """
        if self.storage is None:
            raise ValueError(f"`--trial-id` is {self.trial_id}: `--storage` and `--study-name` must say of which study")
        study = find_study(self.storage, self.study_name)
        trial = find_trial(study, self.trial_id)
        print(f"Hyperparameters of trial {trial.number} of study {study.study_name!r}, whose mean reward was {trial.value}")
        try:
            return HYPERPARAMS_CONVERTER[self.algo](trial.params)
        except KeyError as e:
            raise ValueError(
                f"`--algo` is {self.algo!r}, but study {study.study_name!r} has no hyperparameter {e}: "
                f"it is not one of {self.algo}"
            ) from e

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        if sampler_method != "tpe":
            return super()._create_sampler(sampler_method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # RL Zoo's with `group`, for hyperparameters that not every trial has
            return TPESampler(n_startup_trials=self.n_startup_trials, seed=self.seed, multivariate=True, group=True)

    def objective(self, trial: optuna.Trial) -> float:
        """
        :param trial: A trial of a search
        :return: Mean reward of its trainings
        """
        return mean_of_trainings(super().objective, trial, self.trainings_per_trial, self.n_evaluations)

    def hyperparameters_optimization(self) -> None:
        """RL Zoo's, with a storage that knows dead workers, and with pictures in files."""
        if self.storage is not None and self.study_name is None:
            warnings.warn("`--storage` without `--study-name`: no other worker can join this study, its name is made up")
        self.tensorboard_log = None
        if self.algo in ALGOS and self.n_jobs != 1:
            # Compiling changes global state of torch for a moment, and these jobs are threads. A single job needs nothing:
            # `compile="auto"` counts the gradient steps of each trial.
            self._hyperparams.setdefault("compile", False)
        study = optuna.create_study(
            sampler=self._create_sampler(self.sampler),
            pruner=self._create_pruner(self.pruner),
            storage=self.study_storage,
            study_name=self.study_name,
            load_if_exists=True,
            direction="maximize",
        )
        if "command" not in study.user_attrs:
            study.set_user_attr("command", " ".join(sys.orig_argv))
            for key in sorted(self._hyperparams):
                study.set_user_attr(key, str(self._hyperparams[key]))

        if self.algo in ALGOS and not study.get_trials(deepcopy=False):
            self._begin_with_the_entry(study)
        run_trials(study, self.objective, self.n_trials, self.max_total_trials, self.n_jobs)
        self._report(study)

    @property
    def _n_trials_of_study(self) -> int:
        return self.max_total_trials or self.n_trials

    def _begin_with_the_entry(self, study: optuna.Study) -> None:
        """
        The environment's entry is the first trial of a new study, and where it is TPE that samples, trials around it are
        those that it begins to learn from.

        :param study: A study without trials
        """
        first = first_trial(self._hyperparams, self._action_space, self.n_envs)
        n_first = min(self.n_startup_trials, self._n_trials_of_study) if self.sampler == "tpe" else 1
        for params in [first, *trials_around(first, n_first - 1, self.seed)]:
            study.enqueue_trial(params, skip_if_exists=True)

    def _report(self, study: optuna.Study) -> None:
        print_summary(study)
        search = f"{self._n_trials_of_study}-trials-{self.n_timesteps}-{self.sampler}-{self.pruner}"
        path = Path(self.log_folder) / self.algo / f"report_{self.env_name}_{search}_{int(time.time())}"
        written = write_report(study, path)
        if not self.no_optim_plots:
            written |= draw_study(study, path)
        for label, file in written.items():
            print(f"{label + ':':<25}{file}")
