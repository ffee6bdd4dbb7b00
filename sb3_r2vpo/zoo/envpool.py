"""
EnvPool in RL Zoo: ``r2vpo train --vec-env envpool --env CheetahRun-v1``, then ``r2vpo enjoy`` as always.

RL Zoo knows Gymnasium's environments only: its parser refuses the ``--vec-env``, its check of the registry refuses the
environment, and it makes environments one by one. So the argument is taken away before it is parsed, the environment
gets an entry in the registry, and the pool comes in the place of the ``VecEnv`` class.
"""

import argparse
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import yaml
from rl_zoo3.utils import create_test_env as create_gymnasium_test_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_r2vpo.envpool_vec_env import EnvPoolVecEnv, check_env_id, import_envpool
from sb3_r2vpo.zoo import replace_in_zoo, trained_agents
from sb3_r2vpo.zoo.arguments import take
from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
from sb3_r2vpo.zoo.masks import with_masks

#: The value of ``--vec-env``, also in the saved arguments of a run
VEC_ENV = "envpool"
#: RL Zoo's own ones
ZOO_VEC_ENVS = ("dummy", "subproc")
#: What RL Zoo's entry for Atari wraps a game in
ATARI_WRAPPER = ["stable_baselines3.common.atari_wrappers.AtariWrapper"]
#: Of the environments that Gymnasium does not have. By "AtariEnv" RL Zoo knows what it plays with the stochastic policy
ENTRY_POINT, ATARI_ENTRY_POINT = f"{__name__}:exists_in_envpool_only", f"{__name__}:AtariEnv"


class EnvPoolExperimentManager(R2VPOExperimentManager):
    """
    Trains and evaluates on EnvPool's environments.
    """

    def __init__(self, args: argparse.Namespace, *pos_args: Any, **kwargs: Any) -> None:
        super().__init__(args, *pos_args, **kwargs)
        self._of_one_thread = threading.Lock()
        # Saved with the run, where `enjoy` looks
        args.vec_env = VEC_ENV

    def _adapt_hyperparameters(self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any]) -> None:
        """
        Atari's entry without its wrappers: EnvPool scales and stacks frames itself. Rewards are clipped in training;
        an episode is a whole game, not a life.

        :param hyperparams: The hyperparameters, to be changed in place
        :param saved_hyperparams: Those to be saved, likewise
        """
        if self._is_atari and hyperparams.get("env_wrapper") == ATARI_WRAPPER:
            for entries in (hyperparams, saved_hyperparams):
                del entries["env_wrapper"]
                entries.pop("frame_stack", None)
            self.env_kwargs = {"reward_clip": True, **self.env_kwargs}

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of environments
        :param eval_env: Whether they are for the evaluation
        :param no_log: Whether to write no monitor file
        :return: The environments, with RL Zoo's wrappers
        :raises ValueError: When the hyperparameters have an ``env_wrapper``
        """
        if self.env_wrapper is not None:
            raise ValueError("`env_wrapper` cannot wrap EnvPool's environments: it must be a `vec_env_wrapper`")
        env_id, env_kwargs = self.env_name.gym_id, self.eval_env_kwargs if eval_env else self.env_kwargs
        # The trials of a search may be threads, and RL Zoo reads the class when it makes them
        with self._of_one_thread:
            self.vec_env_class = pool_of(
                env_id,
                env_kwargs=env_kwargs,
                monitor_dir=None if eval_env or no_log else self.save_path,
                # An evaluation is of whole episodes, and so is `enjoy`
                stagger=not eval_env and has_time_limit(env_id, env_kwargs),
            )
            return super().create_envs(n_envs, eval_env, no_log)


def is_atari(env_id: str) -> bool:
    """
    :param env_id: EnvPool's name of an environment
    :return: Whether it is a game of Atari
    """
    from envpool.registration import registry

    return registry.specs[env_id][0] == "envpool.atari"


def has_time_limit(env_id: str, env_kwargs: dict[str, Any] | None) -> bool:
    """
    :param env_id: EnvPool's name of an environment
    :param env_kwargs: Keyword arguments of the environment
    :return: Whether an episode ends after a number of steps that EnvPool knows of
    """
    return import_envpool().make_spec(env_id, **(env_kwargs or {})).config.max_episode_steps >= 1


def pool_of(env_id: str, env_kwargs: dict[str, Any] | None, monitor_dir: str | None, stagger: bool = False) -> Any:
    """
    :param env_id: EnvPool's name of the environment
    :param env_kwargs: Keyword arguments of the environment
    :param monitor_dir: Folder of the monitor file
    :param stagger: Whether to spread the environments over their episodes
    :return: What SB3's ``make_vec_env`` can take for a ``VecEnv`` class: it is given functions that make Gymnasium's
        environments, their number is what counts here
    """

    def make_pool(env_fns: list[Callable[[], gym.Env]]) -> EnvPoolVecEnv:
        return EnvPoolVecEnv(env_id, len(env_fns), monitor_dir, env_kwargs, stagger=stagger)

    return make_pool


def prepare_training(arguments: list[str]) -> list[str]:
    """
    :param arguments: Arguments of RL Zoo's ``train``
    :return: Those that RL Zoo understands
    :raises ImportError: When EnvPool is asked for and not installed
    :raises ValueError: When EnvPool is asked for and has no such environment, or only EnvPool has it, or something
        unknown is asked for
    """
    vec_env, others = take(("--vec-env",), arguments)
    env_id, _ = take(("--env",), arguments)
    if vec_env is None or vec_env in ZOO_VEC_ENVS:
        if env_id in gym.registry and _exists_in_envpool_only(env_id):
            exists_in_envpool_only(env_id)
        return arguments
    if vec_env != VEC_ENV:
        raise ValueError(f"`--vec-env` is {vec_env!r}: it must be one of {', '.join([*ZOO_VEC_ENVS, VEC_ENV])}")
    if env_id is not None:
        check_env_id(env_id)
    replace_in_zoo("ExperimentManager", EnvPoolExperimentManager)
    return others


def register_env(arguments: list[str]) -> None:
    """
    Register the environment with Gymnasium when it exists in EnvPool only.

    :param arguments: Arguments of one of RL Zoo's commands
    """
    env_id, _ = take(("--env",), arguments)
    if env_id is None or env_id in gym.registry:
        return
    try:
        check_env_id(env_id)
    except (ImportError, ValueError):
        # RL Zoo says what it does not find
        return
    entry_point = ATARI_ENTRY_POINT if is_atari(env_id) else ENTRY_POINT
    gym.register(env_id, entry_point=entry_point, kwargs={"env_id": env_id})


def exists_in_envpool_only(env_id: str, **kwargs: Any) -> NoReturn:
    """
    :param env_id: EnvPool's name of the environment
    :param kwargs: Keyword arguments of the environment
    :raises ValueError: Always
    """
    raise ValueError(f"{env_id} exists in EnvPool only: r2vpo train --vec-env {VEC_ENV} --env {env_id}")


AtariEnv = exists_in_envpool_only


def create_test_env(
    env_id: str,
    *,
    stats_path: str | None,
    log_dir: str | None,
    env_kwargs: dict[str, Any],
    should_render: bool = True,
    **kwargs: Any,
) -> VecEnv:
    """
    RL Zoo's function of this name, which its commands call. A run trained on EnvPool is tried on EnvPool, but where there is
    something to see on the same environment of Gymnasium's.

    :param env_id: Name of the environment
    :param stats_path: Folder with the saved arguments and ``VecNormalize`` statistics of the run
    :param log_dir: Folder of the monitor file
    :param env_kwargs: Keyword arguments of the environment
    :param should_render: Whether it is shown on the screen, where no other way of rendering is among these
    :param kwargs: The other arguments of RL Zoo's function
    :return: The environments, with RL Zoo's wrappers
    :raises ValueError: When there is to be a picture, and the environment exists in EnvPool only
    """
    if stats_path is not None and _was_trained_on_envpool(Path(stats_path)):
        in_envpool_only, is_recorded = _exists_in_envpool_only(env_id), env_kwargs.get("render_mode") is not None
        if in_envpool_only and is_recorded:
            raise ValueError(f"{env_id} exists in EnvPool only, which draws no pictures: there is no video of it")
        if in_envpool_only or not (is_recorded or should_render):
            kwargs["vec_env_cls"] = pool_of(env_id, env_kwargs, log_dir)
        else:
            # EnvPoolVecEnv's observations are float32
            kwargs["hyperparams"]["env_wrapper"] = [{"gymnasium.wrappers.DtypeObservation": {"dtype": "float32"}}]
    stats_path = trained_agents.statistics_folder() or stats_path
    kwargs.update(log_dir=log_dir, env_kwargs=env_kwargs, should_render=should_render)
    return with_masks(create_gymnasium_test_env(env_id, stats_path=stats_path, **kwargs))


def _exists_in_envpool_only(env_id: str) -> bool:
    return gym.spec(env_id).entry_point in (ENTRY_POINT, ATARI_ENTRY_POINT)


def _was_trained_on_envpool(run_folder: Path) -> bool:
    saved_arguments = run_folder / "args.yml"
    if not saved_arguments.exists():
        return False
    # RL Zoo saves Python objects, and loads them like this
    return yaml.load(saved_arguments.read_text(), Loader=yaml.UnsafeLoader).get("vec_env") == VEC_ENV
