"""The protocol of the learning benchmark: what every algorithm has in common, and the one knob that is its own."""

import inspect
from typing import Any, NamedTuple

from peers import PPO, SPO
from sb3_contrib import TRPO

from sb3_r2vpo import R2VPO, dual, quiet, signal


class Regime(NamedTuple):
    """
    How the samples of a training are divided into updates.

    :param stagger: Whether the environments are spread over their episodes (see `make_envpool_vec_env`)
    """

    n_envs: int
    n_steps: int
    batch_size: int
    total_timesteps: int
    stagger: bool


class Algorithm(NamedTuple):
    """
    :param make: Its class
    :param arguments: Its own arguments
    :param n_seeds: How many seeds of it are run
    :param defaults_count: Whether a change of its class's defaults makes it another algorithm
    """

    make: Any
    arguments: dict[str, Any]
    n_seeds: int
    defaults_count: bool = False


class Run(NamedTuple):
    """
    One training.

    :param task: EnvPool's name of a DeepMind Control task, without its version
    :param regime: Name of the regime
    :param algorithm: Name of the algorithm
    :param seed: Of weights, actions and environments
    :param changes: Arguments that differ from the protocol
    """

    task: str
    regime: str
    algorithm: str
    seed: int
    changes: dict[str, Any] = {}  # noqa: RUF012 (never written to)


#: The regimes of the protocol, from few huge updates to many small ones
STAGGERED = {
    "large_staggered": Regime(n_envs=256, n_steps=256, batch_size=2048, total_timesteps=4_000_000, stagger=True),
    "middle_staggered": Regime(n_envs=256, n_steps=64, batch_size=2048, total_timesteps=2_000_000, stagger=True),
    "small_staggered": Regime(n_envs=64, n_steps=64, batch_size=512, total_timesteps=1_000_000, stagger=True),
}
#: What it was before, and what environments do that nobody staggers. The studies of the dual are of these
IN_STEP = {
    "large": STAGGERED["large_staggered"]._replace(stagger=False),
    "small": STAGGERED["small_staggered"]._replace(stagger=False),
}
REGIMES = STAGGERED | IN_STEP

#: The paper's ground. Returns are in [0, 1000], and every episode has 1000 steps
TASKS = (
    "BallInCupCatch",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnHard",
    "HopperHop",
    "ReacherHard",
    "WalkerRun",
)
THREE_TASKS = ("BallInCupCatch", "CheetahRun", "FingerSpin")
TASKS_OF = {**dict.fromkeys(REGIMES, TASKS), "middle_staggered": THREE_TASKS}

#: Network 64-64 and tanh are the default of all of them
SHARED = dict(gamma=0.995, gae_lambda=0.95)
#: Of those that take minibatch steps on policy and critic together
MINIBATCH = dict(learning_rate=1e-3, n_epochs=16, ent_coef=0.005, vf_coef=0.5, max_grad_norm=0.5, compile=True)

ALGORITHMS = {
    "PPO 0.1": Algorithm(PPO, dict(clip_range=0.1), n_seeds=5),
    "PPO 0.2": Algorithm(PPO, dict(clip_range=0.2), n_seeds=5),
    "PPO 0.3": Algorithm(PPO, dict(clip_range=0.3), n_seeds=5),
    "TRPO": Algorithm(TRPO, dict(target_kl=0.003), n_seeds=3, defaults_count=True),
    "TRPO 0.03": Algorithm(TRPO, dict(target_kl=0.03), n_seeds=3, defaults_count=True),
    "SPO 0.2": Algorithm(SPO, dict(clip_range=0.2), n_seeds=3),
    "SPO 0.3": Algorithm(SPO, dict(clip_range=0.3), n_seeds=3),
    "SPO 0.4": Algorithm(SPO, dict(clip_range=0.4), n_seeds=3),
    "SPO 0.8": Algorithm(SPO, dict(clip_range=0.8), n_seeds=3),
    "R2VPO fixed 0.3": Algorithm(R2VPO, dict(var_coef=0.3, ratio_penalty="two_sided"), n_seeds=3),
    "R2VPO fixed 0.5": Algorithm(R2VPO, dict(var_coef=0.5, ratio_penalty="two_sided"), n_seeds=3),
    "R2VPO fixed 1": Algorithm(R2VPO, dict(var_coef=1.0, ratio_penalty="two_sided"), n_seeds=5),
    "R2VPO": Algorithm(R2VPO, {}, n_seeds=5, defaults_count=True),
}

#: Of R2VPO, with which everything in step was run: there were no quiet rollouts yet
EARLIER_DEFAULTS: dict[str, Any] = {"quiet_scale": 1.0, "var_coef_bounds": [0.05, 2.0]}


def arguments_of(run: Run) -> dict[str, Any]:
    """
    :param run: A training
    :return: The arguments of its algorithm's class, without policy, environment and seed
    """
    algorithm, regime = ALGORITHMS[run.algorithm], REGIMES[run.regime]
    arguments = {**SHARED, "n_steps": regime.n_steps, "batch_size": regime.batch_size, **algorithm.arguments}
    if algorithm.make is not TRPO:
        # TRPO keeps its critic's learning rate (1e-3, as here) and passes (10); the policy's step is the whole rollout's
        arguments = {**arguments, **MINIBATCH}
    if algorithm.make is R2VPO and run.regime in IN_STEP:
        arguments = {**arguments, **EARLIER_DEFAULTS}
    return {**arguments, **run.changes}


def configuration(run: Run) -> dict[str, Any]:
    """
    :param run: A training
    :return: What goes into the results: regime and arguments, with the class's defaults where they count
    """
    algorithm, arguments = ALGORITHMS[run.algorithm], arguments_of(run)
    defaults = {}
    if algorithm.defaults_count:
        defaults = defaults_of(algorithm.make)
        if algorithm.make is R2VPO:
            no_quiet = {**defaults, **arguments}["quiet_scale"] == 1.0
            defaults["rule"] = default_as_json(RULE if no_quiet else [*RULE, quiet.QUIET, quiet.PATIENCE])
    regime = REGIMES[run.regime]._asdict()
    if not regime["stagger"]:
        # Records from before it was there do not have it
        del regime["stagger"]
    return {**regime, **defaults, **arguments}


def defaults_of(algorithm: Any) -> dict[str, Any]:
    """
    :param algorithm: Class of an algorithm
    :return: The defaults of those of its arguments that learning depends on
    """
    parameters = inspect.signature(algorithm.__init__).parameters
    return {name: default_as_json(p.default) for name, p in parameters.items() if name not in NOT_LEARNING}


#: What the rule for λ is made of besides arguments
RULE = [dual.VARIANCE_PER_FREEDOM, dual.WIDENING, dual.STANDARD_ERRORS, dual.VIOLATION_RANGE, signal.NEWEST]
#: Arguments that learning does not depend on, or that the run itself names
NOT_LEARNING = (
    *("self", "policy", "env", "seed", "device", "verbose", "compile", "stats_window_size", "tensorboard_log"),
    *("clip_range", "_init_setup_model"),
)


def default_as_json(value: Any) -> Any:
    """
    :param value: Default of an argument
    :return: What JSON makes of it
    """
    if isinstance(value, (tuple, list)):
        return [default_as_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
