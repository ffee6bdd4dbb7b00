import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_r2vpo import objective
from sb3_r2vpo.rollouts import Samples, whole_rollout, without_padding
from sb3_r2vpo.updater import evaluate_actions


class RatioHistogramCallback(BaseCallback):
    """
    Writes the histogram of the policy ratio ρ to TensorBoard as ``train/ratio``: for every sample of a rollout,
    the policy after the rollout's updates against the policy that collected it. Works with any of SB3's on-policy
    algorithms, so R2VPO's soft brake can be looked at beside PPO's clip.

    Costs one forward pass per rollout. As with SB3's own ``train/`` values, the last update of ``learn`` comes too late to be
    written.

    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    """

    def __init__(self, verbose: int = 0):
        super().__init__(verbose)
        self._rollout: Samples | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._rollout = whole_rollout(self.model.rollout_buffer)  # type: ignore[attr-defined]

    def _on_rollout_start(self) -> None:
        if self._rollout is not None:
            with th.no_grad():
                _, log_prob, _ = evaluate_actions(self.model.policy, self._rollout)  # type: ignore[arg-type]
            ratio = objective.policy_ratio(log_prob - without_padding(self._rollout).old_log_prob)
            self.logger.record("train/ratio", ratio, exclude=("stdout", "log", "json", "csv"))
