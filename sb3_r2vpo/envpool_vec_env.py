"""EnvPool (https://github.com/sail-sg/envpool) as one of SB3's vectorized environments."""

import difflib
import os
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_r2vpo.arguments import check_integer
from sb3_r2vpo.workers import n_processes

#: What EnvPool adds to the infos of the environments themselves
POOL_INFO = ("env_id", "players", "elapsed_step")


class EnvPoolVecEnv(VecEnv):
    """
    Copies of one of EnvPool's environments, which are C++ and step in threads: DeepMind Control, Gymnasium's MuJoCo,
    Box2D and classic control tasks, Atari and others (``envpool.list_all_envs()``).

    Floating point observations and actions are float32, everything else is as EnvPool has it. Episode statistics are
    built in, with the meaning of ``Monitor``'s. ``infos`` hold what SB3's algorithms read; EnvPool's own entries
    (as ``is_success``) are added on the last step of an episode only, as they would cost more than the simulation.

    An episode that terminates on the very step of its time limit counts as truncated, EnvPool does not tell the two
    apart. There is no rendering.

    :param env_id: EnvPool's name of the environment, Gymnasium's where both have it
    :param n_envs: the number of environments you wish to have in parallel
    :param monitor_dir: Path to a folder where the monitor file will be saved, one for all environments.
        If None, no file will be written.
    :param env_kwargs: Optional keyword arguments to pass to EnvPool, e.g. ``dict(max_episode_steps=200)``
    :param num_threads: Number of threads that step the environments (0: one per core, ``n_envs`` at most; of processes
        that torchrun has started each has its share of the cores)
    :param flatten_dict: Whether to make one vector of a dictionary observation, its entries in EnvPool's order.
        If False, it is for ``MultiInputPolicy``.
    :param stagger: Whether to cut the first episodes short, see `make_envpool_vec_env`
    :raises ImportError: When EnvPool is not installed
    :raises ValueError: When EnvPool has no such environment, SB3 cannot handle it, or an argument is out of its range
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        monitor_dir: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        num_threads: int = 0,
        flatten_dict: bool = True,
        stagger: bool = False,
    ):
        check_integer("n_envs", n_envs, minimum=1)
        check_integer("num_threads", num_threads, minimum=0)
        env_kwargs = env_kwargs or {}
        if env_kwargs.get("render_mode") is not None:
            raise ValueError(f"`render_mode` is {env_kwargs['render_mode']!r}: it must be None, EnvPool is not rendered here")
        envpool = import_envpool()
        check_env_id(env_id)
        self.env_id = env_id
        self._make_pool: Callable[..., Any] = partial(
            envpool.make_gymnasium,
            env_id,
            num_envs=n_envs,
            batch_size=n_envs,
            num_threads=num_threads or default_threads(),
            **env_kwargs,
        )
        self._spec: Any = envpool.make_spec(env_id, **env_kwargs)
        observation_space, self._convert_obs = _convert_observations(env_id, self._spec.observation_space, flatten_dict)
        super().__init__(n_envs, observation_space, _action_space(env_id, self._spec))

        self._pool: Any = None
        self._is_stepping = False
        self._first_limits = self._staggered_limits() if stagger else np.zeros(n_envs, dtype=np.int64)
        # EnvPool's own default seed is always the same
        self.seed()

        self._episode_returns = np.zeros(n_envs)
        self._episode_lengths = np.zeros(n_envs, dtype=np.int64)
        self._t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_dir is not None:
            os.makedirs(monitor_dir, exist_ok=True)
            self._results_writer = ResultsWriter(monitor_dir, header={"t_start": self._t_start, "env_id": env_id})

    def reset(self) -> VecEnvObs:
        if self._is_stepping:
            self.step_wait()
        # EnvPool takes seeds at construction only
        if self._seeds[0] is not None:
            # and takes int32, SB3's are uint32
            self._pool = self._make_pool(seed=[seed % 2**31 for seed in self._seeds if seed is not None])
            self._reset_seeds()
        obs, info = self._pool.reset()
        self.reset_infos = [_env_info(info, i) for i in range(self.num_envs)]
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0
        self._limits = self._first_limits.copy()
        return self._convert_obs(obs)

    def step_async(self, actions: np.ndarray) -> None:
        # EnvPool casts them to the type it wants
        self._pool.send(np.asarray(actions))
        self._is_stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, terminated, truncated, info = self._pool.recv()
        self._is_stepping = False
        obs = self._convert_obs(obs)
        # Atari's has the reward before clipping
        self._episode_returns += info.get("reward", rewards)
        self._episode_lengths += 1
        dones = terminated | truncated
        cut = (self._episode_lengths == self._limits) & ~dones
        truncated, dones = truncated | cut, dones | cut
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones)
            for i in ended.tolist():
                infos[i] = {
                    **_env_info(info, i),
                    "TimeLimit.truncated": bool(truncated[i]),
                    "terminal_observation": _copy_of(obs, i),
                    **self._end_episode(i, whole=not cut[i]),
                }
            self._reset_envs(ended, obs)
        return obs, rewards, dones, infos

    def _reset_envs(self, indices: np.ndarray, obs: Any) -> None:
        """
        EnvPool would reset them on the next step, SB3 wants the first observations with this one.

        :param indices: The environments whose episode has ended
        :param obs: Observations of all environments, those of the new episodes are written into it
        """
        first_obs, info = self._pool.reset(indices.astype(np.int32))
        first_obs = self._convert_obs(first_obs)
        if isinstance(obs, dict):
            for key in obs:
                obs[key][indices] = first_obs[key]
        else:
            obs[indices] = first_obs
        for k, i in enumerate(indices):
            self.reset_infos[i] = _env_info(info, k)

    def _staggered_limits(self) -> np.ndarray:
        """
        :return: The length at which the first episode of each environment is cut short, of shape (n_envs,)
        :raises ValueError: When episodes have no time limit
        """
        max_episode_steps = self._spec.config.max_episode_steps
        if max_episode_steps < 1:
            raise ValueError(f"`stagger` is True: {self.env_id} must have a time limit, pass `max_episode_steps`")
        return np.ceil(np.linspace(0, max_episode_steps, self.num_envs + 1)[1:]).astype(np.int64)

    def _end_episode(self, index: int, whole: bool) -> dict[str, dict[str, float]]:
        """
        :param index: An environment whose episode has ended
        :param whole: Whether it counts: what was cut short would tell nothing of the policy
        :return: Return, length and time of the episode, rounded and named as by ``Monitor``
        """
        episode: dict[str, float] = {
            "r": round(float(self._episode_returns[index]), 6),
            "l": int(self._episode_lengths[index]),
            "t": round(time.time() - self._t_start, 6),
        }
        self._episode_returns[index] = 0.0
        self._episode_lengths[index] = 0
        # Only the first episode has one
        self._limits[index] = 0
        if not whole:
            return {}
        if self._results_writer is not None:
            self._results_writer.write_row(episode)
        return {"episode": episode}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            # The threads live as long as the object
            self._pool = None
        if self._results_writer is not None:
            self._results_writer.close()

    def get_images(self) -> list[np.ndarray | None]:
        raise NotImplementedError("EnvPool's environments are not rendered here: use Gymnasium's environment to look at it")

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        super().set_options(options)
        if any(self._options):
            raise ValueError(f"`options` is {options!r}: EnvPool takes none at reset, pass `env_kwargs` at construction")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        attributes = {"render_mode": None, **self._spec.config._asdict()}
        if attr_name not in attributes:
            raise AttributeError(f"EnvPool's {self.env_id} has no attribute {attr_name!r}")
        return [attributes[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(f"Cannot set {attr_name!r} in EnvPool's environments: pass `env_kwargs` at construction")

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> list[Any]:
        raise AttributeError(f"Cannot call {method_name!r}: EnvPool's environments have no methods")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        # The episode statistics of `Monitor` are built in
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def make_envpool_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    monitor_dir: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    num_threads: int = 0,
    flatten_dict: bool = True,
    stagger: bool = False,
) -> EnvPoolVecEnv:
    """
    Create a monitored ``VecEnv`` of EnvPool's environments, as SB3's ``make_vec_env`` does of Gymnasium's.

    :param env_id: EnvPool's name of the environment, Gymnasium's where both have it
    :param n_envs: the number of environments you wish to have in parallel
    :param seed: the initial seed for the random number generator
    :param monitor_dir: Path to a folder where the monitor file will be saved, one for all environments.
        If None, no file will be written.
    :param env_kwargs: Optional keyword arguments to pass to EnvPool, e.g. ``dict(max_episode_steps=200)``
    :param num_threads: Number of threads that step the environments (0: one per core, ``n_envs`` at most; of processes
        that torchrun has started each has its share of the cores)
    :param flatten_dict: Whether to make one vector of a dictionary observation, its entries in EnvPool's order.
        If False, it is for ``MultiInputPolicy``.
    :param stagger: Whether to cut the first episode of each environment short, as a time limit does, so that from then on the
        environments are spread evenly over their episodes. Else those that all last to the time limit stay in step, and a
        rollout shorter than an episode shows one phase of it only. For training: episodes that were cut short are in no
        statistics
    :return: The environments
    """
    vec_env = EnvPoolVecEnv(env_id, n_envs, monitor_dir, env_kwargs, num_threads, flatten_dict, stagger)
    # Prepare the seeds for the first reset
    vec_env.seed(seed)
    return vec_env


def default_threads() -> int:
    """
    :return: This process's share of the cores; 0, for EnvPool's own default, where there is no other process
    """
    return max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])) if n_processes() > 1 else 0


def import_envpool() -> ModuleType:
    """
    :return: The module ``envpool``
    :raises ImportError: When it is not installed
    """
    try:
        import envpool
    except ImportError as e:
        raise ImportError(f"EnvPool cannot be imported ({e}): pip install 'sb3_r2vpo[envpool]'") from e
    return envpool


def check_env_id(env_id: str) -> None:
    """
    :param env_id: Name of an environment
    :raises ValueError: When EnvPool has no such environment
    """
    known = import_envpool().list_all_envs()
    if env_id not in known:
        closest = difflib.get_close_matches(env_id, known, n=3)
        raise ValueError(
            f"`env_id` is {env_id!r}: it must be one of `envpool.list_all_envs()`"
            + (f", the closest are {', '.join(closest)}" if closest else "")
        )


def _is_float(space: spaces.Space) -> TypeGuard[spaces.Box]:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _float32_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: One of EnvPool's spaces
    :return: The same in float32, with the bounds that were meant; a scalar becomes a vector, SB3 has no scalars
    """
    if not _is_float(space):
        return space
    limits = np.finfo(space.low.dtype)  # type: ignore[type-var]
    # C++'s `numeric_limits<double>::min()` is the smallest positive number, not the lowest one
    low = np.where(np.isin(space.low, (limits.tiny, limits.min)), -np.inf, space.low)
    high = np.where(space.high == limits.max, np.inf, space.high)
    return spaces.Box(np.atleast_1d(low).astype(np.float32), np.atleast_1d(high).astype(np.float32))


def _float32_array(array: np.ndarray) -> np.ndarray:
    """
    :param array: One of EnvPool's observations, of shape (n_envs, ...)
    :return: The same in ``_float32_space``
    """
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return array.astype(np.float32, copy=False).reshape(array.shape if array.ndim > 1 else (-1, 1))


def _action_space(env_id: str, spec: Any) -> spaces.Space:
    space = _float32_space(spec.action_space)
    if isinstance(space, spaces.Dict) or spec.config.max_num_players != 1:
        raise ValueError(f"`env_id` is {env_id!r}: it must be an environment with one player and one action space")
    return space


def _convert_observations(env_id: str, space: spaces.Space, flatten_dict: bool) -> tuple[spaces.Space, Callable[[Any], Any]]:
    """
    :param env_id: Name of the environment
    :param space: EnvPool's observation space
    :param flatten_dict: Whether to make one vector of a dictionary
    :return: SB3's observation space, and the function that makes its observations of EnvPool's
    """
    if not isinstance(space, spaces.Dict):
        return _float32_space(space), _float32_array
    entries = {key: _float32_space(entry) for key, entry in space.items()}
    if any(isinstance(entry, spaces.Dict) for entry in entries.values()):
        raise ValueError(f"`env_id` is {env_id!r}: its observations are dictionaries in dictionaries, unknown to SB3")
    if not flatten_dict:
        return spaces.Dict(entries), lambda obs: {key: _float32_array(obs[key]) for key in entries}
    boxes = {key: entry for key, entry in entries.items() if _is_float(entry)}
    if len(boxes) < len(entries):
        raise ValueError(
            f"`flatten_dict` is True: it must be False for {env_id}, not all of whose observations are floating point: "
            + ", ".join(f"{key!r} is {entry}" for key, entry in entries.items() if key not in boxes)
        )
    low = np.concatenate([box.low.ravel() for box in boxes.values()])
    high = np.concatenate([box.high.ravel() for box in boxes.values()])
    # Casts and concatenates in one pass
    return spaces.Box(low, high), lambda obs: np.concatenate(
        [obs[key].reshape(len(obs[key]), -1) for key in boxes], axis=1, dtype=np.float32, casting="same_kind"
    )


def _copy_of(values: Any, index: int) -> Any:
    """
    :param values: An array with one row per environment, or a dictionary of such
    :param index: One of the rows
    :return: A copy of it
    """
    if isinstance(values, dict):
        return {key: _copy_of(value, index) for key, value in values.items()}
    return values[index].copy()


def _env_info(info: dict[str, Any], index: int) -> dict[str, Any]:
    return {key: _copy_of(value, index) for key, value in info.items() if key not in POOL_INFO}
