"""RL Zoo's experiment manager, for runs that survive what ends them: see `resuming`."""

import copy
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_r2vpo.checkpoints import ResumableCheckpointCallback, load_checkpoint, statistics_of, time_of
from sb3_r2vpo.files import claim_folder, write_file
from sb3_r2vpo.workers import n_processes
from sb3_r2vpo.zoo.resuming import (
    check_same_evaluation,
    keep_episodes_until,
    lock_run,
    resumed_hyperparameters,
    save_arguments,
    save_timesteps,
)


class LastingExperimentManager(ExperimentManager):
    """
    Each run has a folder of its own. On-policy algorithms leave checkpoints in it, every ten minutes or by
    ``--save-freq``, and whenever training ends; with ``resumed_run`` it goes on from the newest one.
    """

    #: Folder of the run to go on with
    resumed_run: ClassVar[Path | None] = None
    checkpoints: ResumableCheckpointCallback | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.resumed_run is not None:
            self._set_folder(self.resumed_run)

    def _set_folder(self, run: Path) -> None:
        self.save_path = str(run)
        self.params_path = f"{run}/{self.env_name}"

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: The model and its hyperparameters, ``None`` when they are to be searched for
        """
        self._claimed: Path | None = None
        experiment = None
        try:
            experiment = super().setup_experiment()
        finally:
            # After an error, and in a search: it would be the latest run, and there is nothing in it
            if experiment is None and self._claimed is not None:
                shutil.rmtree(self._claimed, ignore_errors=True)
        return experiment

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        # RL Zoo and SB3 write into the dictionaries in them
        saved_hyperparams = copy.deepcopy(saved_hyperparams)
        self._adapt_hyperparameters(hyperparams, saved_hyperparams)
        if self.resumed_run is not None:
            saved_hyperparams = resumed_hyperparameters(Path(self.params_path), self.custom_hyperparams or {})
            hyperparams = copy.deepcopy(saved_hyperparams)
        return hyperparams, saved_hyperparams

    def _adapt_hyperparameters(self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any]) -> None:
        """
        :param hyperparams: The hyperparameters, to be changed in place
        :param saved_hyperparams: Those to be saved, likewise
        """

    def create_log_folder(self) -> None:
        """
        :raises ValueError: When the run to go on with is finished, still being trained, or was evaluated otherwise
        """
        if self.resumed_run is None:
            if not self.args.uuid:
                self._set_folder(claim_folder(Path(self.log_path), self.env_name))
            self._claimed = Path(self.save_path)
        super().create_log_folder()
        self._lock = lock_run(Path(self.save_path))
        if self.resumed_run is not None:
            done = steps_of(self.trained_agent)
            if done >= self.n_timesteps:
                raise ValueError(
                    f"There is nothing to resume: {self.save_path} has ended after {done} timesteps (-n N for more)"
                )
            if self.eval_freq > 0:
                check_same_evaluation(self.resumed_run, self.n_eval_episodes)
            keep_episodes_until(self.resumed_run, time_of(self.trained_agent))

    def create_callbacks(self) -> None:
        if self.optimize_hyperparameters or not issubclass(ALGOS[self.algo], OnPolicyAlgorithm):
            super().create_callbacks()
            return
        # RL Zoo's checkpoints have no statistics
        save_freq, self.save_freq = self.save_freq, -1
        super().create_callbacks()
        self.checkpoints = ResumableCheckpointCallback(
            self.save_path,
            save_freq=max(save_freq // self.n_envs, 1) if save_freq > 0 else None,
            # Those that were asked for may be wanted for something else
            keep=None if save_freq > 0 else 3,
        )
        self.callbacks.append(self.checkpoints)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if not self.continue_training:
            return super()._maybe_normalize(env, eval_env)
        statistics = statistics_of(self.trained_agent)
        if statistics is None:
            env = super()._maybe_normalize(env, eval_env)
            if isinstance(env, VecNormalize) and env.ret_rms.count < 1 and not eval_env:
                warnings.warn(f"{self.trained_agent} has no `VecNormalize` statistics with it: new ones are begun")
            return env
        statistics.set_venv(env)
        if eval_env:
            statistics.training = statistics.norm_reward = False
        return statistics

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.resumed_run is None:
            return super()._load_pretrained_agent(hyperparams, env)
        print(f"Resuming from {self.trained_agent}")
        return load_checkpoint(
            self.trained_agent,
            ALGOS[self.algo],
            env,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
            device=self.device,
        )

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.resumed_run is not None:
            print(f"Log path: {self.save_path}")
            save_timesteps(Path(self.params_path), self.n_timesteps)
            return
        super()._save_config(saved_hyperparams)
        save_arguments(Path(self.params_path), sys.argv[1:], seed=self.args.seed, vec_env=self.args.vec_env)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        As RL Zoo's, but whatever ends the training leaves the model, with the statistics from before what has ended it.

        :param model: The model
        """
        if self.checkpoints is None:
            super().learn(model)
            return
        resumes = self.resumed_run is not None
        if not resumes and self.tensorboard_log is not None:
            folder = claim_folder(Path(self.tensorboard_log), type(model).__name__)
            model.set_logger(configure(str(folder), ["stdout", "tensorboard"] if self.verbose >= 1 else ["tensorboard"]))
        done = model.num_timesteps if resumes else 0
        for callback in self.callbacks:
            callback.n_calls = done // (model.n_envs * n_processes())
        interval = {} if self.log_interval == -1 else {"log_interval": self.log_interval if self.log_interval > -1 else None}
        try:
            with self.checkpoints:
                model.learn(
                    self.n_timesteps - done, self.callbacks, reset_num_timesteps=not resumes, **interval  # type: ignore[arg-type]
                )
        except KeyboardInterrupt:
            # RL Zoo saves the model next
            pass
        except BaseException:
            self.save_trained_model(model)
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
                    callback.on_training_end()
            close(model)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model and its statistics, each as a whole, and say how to go on with a training that was interrupted.

        :param model: The trained model
        """
        if self.checkpoints is None:
            super().save_trained_model(model)
            return
        print(f"Saving to {self.save_path}")
        model.save(f"{self.save_path}/{self.env_name}")
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            write_file(f"{self.params_path}/vecnormalize.pkl", pickle.dumps(normalizer))
        if self._lock is not None:
            self._lock.close()
        if model.num_timesteps < self.n_timesteps:
            print(f"{'To go on:':<25}r2vpo train --resume {self.save_path}")


def steps_of(checkpoint: str) -> int:
    """
    :param checkpoint: Path of a checkpoint
    :return: Its timesteps
    """
    return int(Path(checkpoint).stem.split("_")[-2])


def close(model: BaseAlgorithm) -> None:
    """
    :param model: A model whose environments are closed; their processes may be dead already
    """
    assert model.env is not None
    try:
        model.env.close()
    except (EOFError, OSError):
        pass
