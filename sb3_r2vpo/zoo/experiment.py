import argparse
from pathlib import Path
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_r2vpo.zoo import ALGO, hyperparameter_file
from sb3_r2vpo.zoo.learning_curve import draw_learning_curve

#: The arguments of R2VPO that can be a schedule
SCHEDULES = ("learning_rate", "clip_range_vf", "target_var", "var_coef")


class R2VPOExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, with R2VPO's hyperparameter file as its default one. A finished training draws its
    learning curve and says where everything is.
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
