import argparse
from pathlib import Path
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_r2vpo.zoo import ALGO, hyperparameter_file
from sb3_r2vpo.zoo.learning_curve import draw_learning_curve


class R2VPOExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, with R2VPO's hyperparameter file as its default one. A finished training draws its
    learning curve and says where everything is.
    """

    def __init__(self, args: argparse.Namespace, algo: str, *other_args: Any, **kwargs: Any) -> None:
        if algo == ALGO and kwargs.get("config") is None:
            kwargs["config"] = str(hyperparameter_file())
        super().__init__(args, algo, *other_args, **kwargs)

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
