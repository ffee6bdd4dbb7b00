"""RL Zoo's callbacks of the evaluation, with files that are replaced as a whole and go on after an interruption."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.callbacks import EvalCallback

from sb3_r2vpo.files import write_file


class ContinuedEvalCallback(EvalCallback):
    """
    SB3's callback. When there are evaluations in the folder already, it goes on with those before the present timestep,
    and the best model stays until there is a better one.
    """

    def _init_callback(self) -> None:
        super()._init_callback()
        file = Path(f"{self.log_path}.npz")
        if self.log_path is None or not file.exists():
            return
        with np.load(file) as evaluations:
            before = evaluations["timesteps"] <= self.model.num_timesteps
            self.best_mean_reward = float(evaluations["results"].mean(axis=1).max())
            self.evaluations_timesteps = evaluations["timesteps"][before].tolist()
            self.evaluations_results = evaluations["results"][before].tolist()
            self.evaluations_length = evaluations["ep_lengths"][before].tolist()
            if "successes" in evaluations:
                self.evaluations_successes = evaluations["successes"][before].tolist()

    def _on_step(self) -> bool:
        log_path = self.log_path
        if log_path is None:
            return super()._on_step()
        # SB3 gives it to numpy, which writes into it as into a file
        buffer = io.BytesIO()
        self.log_path = buffer  # type: ignore[assignment]
        try:
            continue_training = super()._on_step()
        finally:
            self.log_path = log_path
        if content := buffer.getvalue():
            write_file(f"{log_path}.npz", content)
        return continue_training


class WholeVecNormalizeCallback(SaveVecNormalizeCallback):
    """RL Zoo's callback, which saves the statistics with the best model."""

    def _on_step(self) -> bool:
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            write_file(os.path.join(self.save_path, "vecnormalize.pkl"), pickle.dumps(normalizer))
        return True
