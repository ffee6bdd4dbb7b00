"""
The peers that differ from R2VPO in nothing but the surrogate: through its compiled gradient step they train as fast as
it does. A test (tests/test_peers.py) shows that the first computes what SB3's PPO computes.
"""

from functools import partial
from typing import Any

import torch as th

from sb3_r2vpo import R2VPO
from sb3_r2vpo.updater import Updater


class ClippedUpdater(Updater):
    """
    PPO's gradient step, https://arxiv.org/abs/1707.06347

    :param clip_range: ε
    """

    def __init__(self, *args: Any, clip_range: float) -> None:
        super().__init__(*args)
        self.clip_range = clip_range

    def surrogate(self, ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
        clipped = ratio.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        return th.min(ratio * advantages, clipped * advantages).mean()


class BrakedUpdater(ClippedUpdater):
    """SPO's gradient step, https://arxiv.org/abs/2401.16025: a sample rests at 1 ± ε, whatever its advantage's size."""

    def surrogate(self, ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
        brake = advantages.abs() / (2.0 * self.clip_range) * (ratio - 1.0).square()
        return (ratio * advantages - brake).mean()


class PPO(R2VPO):
    """
    :param args: Arguments of SB3's PPO up to ``gae_lambda``
    :param clip_range: ε
    :param kwargs: The other arguments of SB3's PPO
    """

    gradient_step = ClippedUpdater

    def __init__(self, *args: Any, clip_range: float, **kwargs: Any) -> None:
        super().__init__(*args, var_coef=0.0, **kwargs)
        self.updater_class = partial(self.gradient_step, clip_range=clip_range)


class SPO(PPO):
    """Arguments as `PPO`."""

    gradient_step = BrakedUpdater
