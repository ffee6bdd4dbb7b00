import argparse
import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_r2vpo.r2vpo import R2VPO
from sb3_r2vpo.zoo import ALGO, hyperparameter_file
from sb3_r2vpo.zoo.learning_curve import draw_learning_curve

#: The arguments of R2VPO that can be a schedule
SCHEDULES = ("learning_rate", "clip_range_vf", "target_var", "var_coef")
#: What RL Zoo itself takes out of the hyperparameters of an environment
ZOO_HYPERPARAMETERS = {
    "n_envs",
    "n_timesteps",
    "normalize",
    "frame_stack",
    "env_wrapper",
    "vec_env_wrapper",
    "env_kwargs",
    "monitor_kwargs",
    "callback",
}
#: These arguments of R2VPO are RL Zoo's to pass
COMMAND_LINE_ARGUMENTS = {"seed", "verbose", "device", "tensorboard_log"}
R2VPO_HYPERPARAMETERS = (
    set(inspect.signature(R2VPO.__init__).parameters) - {"self", "env", "_init_setup_model"} - COMMAND_LINE_ARGUMENTS
)


class R2VPOExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, with R2VPO's hyperparameter file as its default one. Hyperparameters are checked before
    anything is created. A finished training draws its learning curve and says where everything is.
    """

    def __init__(self, args: argparse.Namespace, algo: str, *other_args: Any, **kwargs: Any) -> None:
        if algo == ALGO and kwargs.get("config") is None:
            kwargs["config"] = str(hyperparameter_file())
        super().__init__(args, algo, *other_args, **kwargs)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        RL Zoo's function of this name knows PPO's schedules only.

        :param hyperparams: The hyperparameters as they are written
        :return: The same with schedules in the place of their names
        :raises ValueError: When a string is not the name of a schedule
        """
        schedules = {
            key: linear_schedule(key, value)
            for key, value in hyperparams.items()
            if key in SCHEDULES and isinstance(value, str) and not (key == "var_coef" and value.startswith("auto"))
        }
        others = {key: value for key, value in hyperparams.items() if key not in schedules}
        return {**ExperimentManager._preprocess_schedules(others), **schedules}

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        """
        :param hyperparams: The hyperparameters of an environment
        :return: The arguments of the algorithm, and what RL Zoo has made of the other ones
        :raises ValueError: When a hyperparameter of R2VPO is missing, unknown or out of its range
        :raises TypeError: When ``clip_range`` is among them
        """
        if self.algo != ALGO:
            return super()._preprocess_hyperparams(hyperparams)
        # Before RL Zoo makes a schedule of it
        R2VPO("MlpPolicy", env=None, clip_range=hyperparams.get("clip_range"), _init_setup_model=False)  # type: ignore[arg-type]
        check_names(set(hyperparams))
        processed = super()._preprocess_hyperparams(hyperparams)
        check_values(processed[0], self.n_envs)
        return processed

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


def linear_schedule(name: str, value: str) -> SimpleLinearSchedule:
    """
    :param name: Name of an argument
    :param value: What the hyperparameters have for it, e.g. ``"lin_0.02"``
    :return: The schedule from that value to zero
    :raises ValueError: When the string is something else
    """
    kind, _, initial_value = value.partition("_")
    try:
        return {"lin": SimpleLinearSchedule}[kind](initial_value)
    except (KeyError, ValueError):
        raise ValueError(
            f"`{name}` is {value!r}: it must be a number (in YAML with a point, 1.0e-3, otherwise it is text) or "
            "'lin_<initial value>', e.g. 'lin_0.02', to fall from there to zero"
            + (", or 'auto' or 'auto_<initial value>'" if name == "var_coef" else "")
        ) from None


def check_names(names: set[str]) -> None:
    """
    :param names: Names of the hyperparameters of an environment
    :raises ValueError: When one is missing or unknown
    """
    known = ZOO_HYPERPARAMETERS | R2VPO_HYPERPARAMETERS
    for name in sorted(names - known):
        if name in COMMAND_LINE_ARGUMENTS:
            raise ValueError(f"`{name}` is no hyperparameter: pass --{name.replace('_', '-')} {name.upper()} instead")
        similar = difflib.get_close_matches(name, known, n=1)
        suggestion = f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(sorted(known - {'clip_range'}))}"
        raise ValueError(f"`{name}` is not a hyperparameter of {ALGO}: {suggestion}")
    for name in ("policy", "n_timesteps"):
        if name not in names:
            raise ValueError(f"`{name}` is missing in the hyperparameters of the environment: RL Zoo needs it there")


def check_values(arguments: dict[str, Any], n_envs: int) -> None:
    """
    Before there are environments and a folder for the run.

    :param arguments: Arguments of R2VPO
    :param n_envs: Number of environments
    :raises ValueError: When one is out of its range
    """
    model = R2VPO(env=None, **arguments, _init_setup_model=False)  # type: ignore[arg-type]
    model.n_envs = n_envs
    model._check_arguments()
