"""
Speed of R2VPO beside SB3's PPO and SBX's (JAX), all in one run on one machine.

    python benchmarks/speed.py run                  # writes benchmarks/results/speed_<device>.json
    python benchmarks/speed.py run --device cuda
    python benchmarks/speed.py plot                 # docs/images/speed.png, the tables of docs/speed.md and README.md

Every implementation runs in a process of its own, with one thread for its arithmetic. The processes take turns, so
that a machine whose speed drifts does not favour one.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from readme import DOCS, README, replace_in
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
PICTURE = DOCS / "images" / "speed.png"

N_ENVS = 8
N_EPOCHS = 10
#: By device: a card is for larger ones
BATCH_SIZES = {"cpu": (64, 256, 1024, 2048, 4096), "cuda": (64, 512, 4096)}
NETWORKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "cpu": ((64, 64), (256, 256)),
    "cuda": ((64, 64), (512, 256, 128)),
}
#: Environment id of each task by the way it is stepped; all but EnvPool's are Gymnasium's
TASKS = {
    "HalfCheetah-v5": {"gymnasium": "HalfCheetah-v5", "envpool": "HalfCheetah-v5"},
    "cheetah-run (DM Control)": {"gymnasium": "dm_control/cheetah-run-v0", "envpool": "CheetahRun-v1"},
}
#: Implementation and vectorized environment, end to end
END_TO_END = (
    ("SB3 PPO", "dummy"),
    ("SB3 PPO", "subproc"),
    ("SBX PPO", "dummy"),
    ("SBX PPO", "subproc"),
    ("R2VPO plain", "dummy"),
    ("R2VPO compiled", "dummy"),
    ("R2VPO compiled", "envpool"),
    ("R2VPO compiled", "envpool, pinned"),
)
#: What is added to the name of the implementation
VEC_ENV_LABELS = {"dummy": "", "subproc": "", "envpool": " + EnvPool", "envpool, pinned": " + EnvPool, pinned"}
IMPLEMENTATIONS = {
    "cpu": ("SB3 PPO", "SBX PPO", "R2VPO plain", "R2VPO compiled"),
    # SBX compiles for 36 s on a card, for each shape
    "cuda": ("SB3 PPO", "R2VPO plain", "R2VPO compiled"),
}
#: What multiplies matrices: torch's own (MKL on x86), and what the compiled step uses where that is slow
LIBRARIES = ("torch", "oneDNN")
#: Where the time of a rollout goes: implementation and vectorized environment
ROLLOUTS = tuple(
    (implementation, vec_env)
    for implementation, vec_env in END_TO_END
    if implementation in ("SB3 PPO", "R2VPO compiled") and vec_env != "subproc"
)
ROLLOUT_PARTS = ("environments", "everything else")


def jobs_of(device: str) -> dict[str, list[dict[str, Any]]]:
    """
    :param device: cpu or cuda
    :return: What is measured, by the name of the function. The environments are on the CPU, and so is what is measured of them
    """
    sizes = [dict(batch_size=batch, network=network) for network in NETWORKS[device] for batch in BATCH_SIZES[device]]
    jobs: dict[str, list[dict[str, Any]]] = {
        "minibatch_seconds": [
            dict(implementation=implementation, **size) for size in sizes for implementation in IMPLEMENTATIONS[device]
        ],
    }
    if device == "cpu":
        # On a card launching them one by one takes longer than all of a captured step
        jobs["matrix_product_seconds"] = [
            dict(implementation="R2VPO plain", **size, library=library) for size in sizes for library in LIBRARIES
        ]
        jobs["steps_per_second"] = [
            dict(implementation=implementation, task=task, vec_env=vec_env)
            for task in TASKS
            for implementation, vec_env in END_TO_END
        ]
        jobs["rollout_seconds"] = [
            dict(implementation=implementation, task=task, vec_env=vec_env, part=part)
            for task in TASKS
            for implementation, vec_env in ROLLOUTS
            for part in ROLLOUT_PARTS
        ]
    return jobs


PACKAGES = ("stable_baselines3", "sbx-rl", "torch", "jax", "gymnasium", "mujoco", "dm_control", "envpool")
#: One thread each; for JAX there is no such variable, but its pool can be told
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",
    # Else it takes most of a card's memory, and the others take turns with it
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


# --- In the process of one implementation


def make_model(implementation: str, env: Any, device: str, network: tuple[int, ...] = (64, 64), **kwargs: Any) -> Any:
    """
    :param implementation: One of ``IMPLEMENTATIONS``
    :param env: Vectorized environment
    :param device: cpu or cuda
    :param network: Hidden layers of policy and value function
    :return: A model with PPO's default hyperparameters
    """
    kwargs.update(policy_kwargs=dict(net_arch=list(network)), n_epochs=N_EPOCHS, seed=0)
    if implementation == "SBX PPO":
        from sbx import PPO as SBXPPO

        return SBXPPO("MlpPolicy", env, **kwargs)
    if implementation == "SB3 PPO":
        from stable_baselines3 import PPO

        return PPO("MlpPolicy", env, device=device, **kwargs)
    from sb3_r2vpo import R2VPO

    return R2VPO("MlpPolicy", env, device=device, compile=implementation == "R2VPO compiled", **kwargs)


def random_vec_env() -> Any:
    """
    :return: Vectorized environment with the spaces of HalfCheetah-v5 that costs next to nothing
    """
    import gymnasium as gym
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env

    class RandomEnv(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (17,))
        action_space = gym.spaces.Box(-1.0, 1.0, (6,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.np_random.normal(size=17).astype(np.float32), {}

        def step(self, action):
            obs = self.np_random.normal(size=17).astype(np.float32)
            return obs, float(self.np_random.normal()), bool(self.np_random.random() < 1e-3), False, {}

    return make_vec_env(RandomEnv, n_envs=N_ENVS)


@cache
def model_on_random_data(implementation: str, device: str, batch_size: int, network: tuple[int, ...]) -> Any:
    """
    :return: A model with a full rollout buffer, everything compiled
    """
    n_steps = max(2048, 4 * batch_size) // N_ENVS
    # So small a learning rate keeps the policy where it is, however often it is updated on the same rollout
    settings: dict[str, Any] = dict(n_steps=n_steps, batch_size=batch_size, learning_rate=1e-7)
    model = make_model(implementation, random_vec_env(), device, network, **settings)
    return model.learn(n_steps * N_ENVS)


def minibatch_seconds(implementation: str, device: str, batch_size: int, network: list[int]) -> float:
    """
    :return: Seconds of ``train()`` per minibatch, everything in it included
    """
    model = model_on_random_data(implementation, device, batch_size, tuple(network))
    n_minibatches = N_EPOCHS * model.n_steps * N_ENVS // batch_size
    start = time.perf_counter()
    model.train()
    return (time.perf_counter() - start) / n_minibatches


@cache
def model_on_task(implementation: str, device: str, task: str, vec_env: str) -> Any:
    """
    :return: A model that has learned for one rollout, so that everything is compiled
    """
    import gymnasium as gym
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

    env: VecEnv
    if vec_env.startswith("envpool"):
        from sb3_r2vpo.envpool_vec_env import make_envpool_vec_env

        # One core for each thread, else the kernel decides
        env_kwargs = dict(thread_affinity_offset=0) if vec_env == "envpool, pinned" else None
        env = make_envpool_vec_env(TASKS[task]["envpool"], n_envs=N_ENVS, seed=0, env_kwargs=env_kwargs)
    else:

        def make_env() -> gym.Env:
            # In the process of the environment, which knows of no registration elsewhere
            import shimmy

            gym.register_envs(shimmy)
            return gym.wrappers.FlattenObservation(gym.make(TASKS[task]["gymnasium"]))

        vec_env_cls = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[vec_env]
        env = make_vec_env(make_env, n_envs=N_ENVS, seed=0, vec_env_cls=vec_env_cls)  # type: ignore[arg-type]
    model = make_model(implementation, env, device, n_steps=2048 // N_ENVS, batch_size=64)
    return model.learn(2048)


def matrix_product_seconds(implementation: str, device: str, batch_size: int, network: list[int], library: str) -> float:
    """
    :return: Seconds that the matrix products alone of a minibatch take, forwards and backwards, of policy and value network
    """
    import torch as th

    from sb3_r2vpo.fast.onednn import product

    multiply = th.mm if library == "torch" else lambda a, b: product(a, b.t())
    layers = [pair for n_outputs in (6, 1) for pair in pairwise((17, *network, n_outputs))]
    operands = [[th.randn(s, device=device) for s in ((batch_size, i), (i, o), (batch_size, o))] for i, o in layers]
    n_repeats = 64_000 // batch_size
    start = time.perf_counter()
    for _ in range(n_repeats):
        for (n_in, _), (x, weight, gradient) in zip(layers, operands, strict=True):
            multiply(x, weight)
            multiply(x.t(), gradient)
            if n_in != 17:  # the observations need no gradient
                multiply(gradient, weight.t())
    return (time.perf_counter() - start) / n_repeats


def steps_per_second(implementation: str, device: str, task: str, vec_env: str) -> float:
    """
    :return: Environment steps per second of ``learn()``, over five rollouts
    """
    model = model_on_task(implementation, device, task, vec_env)
    start = time.perf_counter()
    model.learn(5 * 2048, reset_num_timesteps=False)
    return 5 * 2048 / (time.perf_counter() - start)


def rollout_seconds(implementation: str, device: str, task: str, vec_env: str, part: str) -> float:
    """
    :return: Seconds of a rollout per step of the vectorized environment, spent in its ``step`` or in everything else
    """
    model = model_on_task(implementation, device, task, vec_env)
    step, seconds = model.env.step, []

    def timed_step(actions: Any) -> Any:
        start = time.perf_counter()
        result = step(actions)
        seconds.append(time.perf_counter() - start)
        return result

    _, callback = model._setup_learn(2048, reset_num_timesteps=False)
    model.env.step = timed_step
    start = time.perf_counter()
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    total = time.perf_counter() - start
    del model.env.step
    return (sum(seconds) if part == "environments" else total - sum(seconds)) / len(seconds)


def footprint(implementation: str, device: str) -> dict[str, float]:
    """
    To be asked of a fresh process.

    :return: By how many seconds the first rollout with its update is slower than the second,
        and the peak memory of the process in MiB
    """
    model = make_model(implementation, random_vec_env(), device, n_steps=2048 // N_ENVS, batch_size=64)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.learn(2048)
        seconds.append(time.perf_counter() - start)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(compile_seconds=seconds[0] - seconds[1], peak_mib=peak_mib)


def answer_jobs(implementation: str, device: str) -> None:
    """
    Read jobs from standard input, one JSON object a line, and answer each with a line.
    """
    import torch as th

    th.set_num_threads(1)
    measures: tuple[Callable[..., Any], ...] = (
        footprint,
        matrix_product_seconds,
        minibatch_seconds,
        steps_per_second,
        rollout_seconds,
    )
    by_name = {measure.__name__: measure for measure in measures}
    for line in sys.stdin:
        job = json.loads(line)
        print("answer", json.dumps(by_name[job.pop("measure")](implementation, device, **job)), flush=True)


# --- In the process that lets them take turns


class Worker:
    """
    The process of one implementation.

    :param implementation: One of ``IMPLEMENTATIONS``
    :param device: cpu or cuda
    :param environment: More environment variables
    """

    def __init__(self, implementation: str, device: str, environment: dict[str, str] | None = None) -> None:
        self.name = implementation
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", "--implementation", implementation, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
        )

    def ask(self, measure: str, **job: Any) -> Any:
        """
        :param measure: Name of the function to call
        :param job: Its arguments
        :return: Its answer
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(dict(measure=measure, **job)) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{self.name} ended while measuring {measure} {job}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(device: str, repeats: int, parts: list[str] | None) -> None:
    """
    Measure and write the results file, part by part.

    :param device: cpu or cuda
    :param repeats: How often each figure is taken, after one that does not count
    :param parts: Those to measure, by default all; the file keeps the others
    """
    path = RESULTS / f"speed_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    jobs = jobs_of(device)
    for part in parts or ("footprint", *jobs):
        results.update(
            date=date.today().isoformat(),
            machine=machine(device),
            versions={name: version_of(name) for name in PACKAGES},
            settings=dict(n_envs=N_ENVS, n_epochs=N_EPOCHS, threads=1),
        )
        results[part] = footprints(device) if part == "footprint" else take_turns(device, part, jobs[part], repeats)
        path.write_text(json.dumps(results, indent=1) + "\n")


def footprints(device: str) -> dict[str, dict[str, float]]:
    """
    :param device: cpu or cuda
    :return: The footprint of each implementation, in a process and with a compiler cache of its own
    """
    answers = {}
    for implementation in IMPLEMENTATIONS[device]:
        with tempfile.TemporaryDirectory() as cache_dir:
            worker = Worker(implementation, device, {"TORCHINDUCTOR_CACHE_DIR": cache_dir})
            answers[implementation] = worker.ask("footprint")
            worker.close()
    return answers


def take_turns(device: str, measure: str, jobs: list[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """
    :param device: cpu or cuda
    :param measure: Name of the function to call
    :param jobs: Its arguments, with the implementation
    :param repeats: How often each job is measured, all of them in turn, after a first round that does not count
    :return: The jobs with their values and median
    """
    workers = {implementation: Worker(implementation, device) for implementation in {job["implementation"] for job in jobs}}
    values: list[list[float]] = [[] for _ in jobs]
    for turn in tqdm(range(repeats + 1), desc=measure):
        for job, taken in zip(jobs, values, strict=True):
            arguments = {key: value for key, value in job.items() if key != "implementation"}
            value = workers[job["implementation"]].ask(measure, **arguments)
            if turn > 0:
                taken.append(value)
    for worker in workers.values():
        worker.close()
    return [dict(**job, median=statistics.median(taken), values=taken) for job, taken in zip(jobs, values, strict=True)]


def version_of(package: str) -> str | None:
    """
    :param package: Its name
    :return: Its version, None where it is not needed and not there
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine(device: str) -> str:
    """
    :param device: cpu or cuda
    :return: The processor or the card in words
    """
    if device == "cuda":
        import torch as th

        return th.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


# --- From the results to pictures and tables


def minibatch_table(results: dict[str, Any], device: str) -> str:
    """
    :param results: The results file
    :param device: cpu or cuda
    :return: Markdown: milliseconds per minibatch, and how many times as fast as SB3's PPO
    """
    libraries = LIBRARIES if device == "cpu" else ()
    columns = (*IMPLEMENTATIONS[device], *(f"matrix products alone, {library}" for library in libraries))
    lines = ["| `train()`, ms per minibatch | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for network in NETWORKS[device]:
        for batch_size in BATCH_SIZES[device]:
            rows = minibatch_medians(results, "minibatch_seconds", batch_size, network)
            cells = [f"{1000 * rows[i]:.2f} ({rows['SB3 PPO'] / rows[i]:.1f}×)" for i in IMPLEMENTATIONS[device]]
            if libraries:
                floors = minibatch_medians(results, "matrix_product_seconds", batch_size, network, key="library")
                cells += [f"{1000 * floors[library]:.2f}" for library in libraries]
            lines.append(f"| {'-'.join(map(str, network))}, batch {batch_size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def minibatch_medians(
    results: dict[str, Any], part: str, batch_size: int, network: tuple[int, ...], key: str = "implementation"
) -> dict[str, float]:
    """
    :param results: The results file
    :param part: One that measures minibatches
    :param batch_size: Minibatch size
    :param network: Hidden layers
    :param key: What tells the rows apart
    :return: Seconds by that
    """
    return {
        row[key]: row["median"]
        for row in results[part]
        if row["batch_size"] == batch_size and tuple(row["network"]) == network
    }


def end_to_end(results: dict[str, Any], task: str) -> dict[str, tuple[float, float]]:
    """
    :param results: The results file
    :param task: One of ``TASKS``
    :return: Steps per second of each implementation, with the better of Gymnasium's vectorized environments and with EnvPool,
        and how many times as fast it is as SB3's PPO: the median of the turns, as the machine's speed drifts between them
    """
    best: dict[str, dict[str, Any]] = {}
    for row in results["steps_per_second"]:
        if row["task"] == task:
            label = row["implementation"] + VEC_ENV_LABELS[row["vec_env"]]
            best[label] = max(best.get(label, row), row, key=lambda row: row["median"])
    reference = best["SB3 PPO"]["values"]
    return {
        label: (row["median"], statistics.median(x / y for x, y in zip(row["values"], reference, strict=True)))
        for label, row in best.items()
    }


def end_to_end_table(results: dict[str, Any]) -> str:
    """
    :param results: The results file
    :return: Markdown: environment steps per second, and how many times as fast as SB3's PPO
    """
    columns = list(end_to_end(results, next(iter(TASKS))))
    lines = ["| `learn()`, steps per second | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for task in TASKS:
        cells = [f"{speed:,.0f} ({ratio:.1f}×)" for speed, ratio in end_to_end(results, task).values()]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rollout_table(results: dict[str, Any]) -> str:
    """
    :param results: The results file
    :return: Markdown: microseconds of a rollout per step of the vectorized environment
    """
    lines = ["| µs per step of 8 environments | " + " | ".join(TASKS) + " |", "|---" * (1 + len(TASKS)) + "|"]
    for implementation, vec_env in ROLLOUTS:
        cells = []
        for task in TASKS:
            medians = {
                row["part"]: 1e6 * row["median"]
                for row in results["rollout_seconds"]
                if (row["implementation"], row["vec_env"], row["task"]) == (implementation, vec_env, task)
            }
            cells.append(" + ".join(f"{medians[part]:.0f} {part}" for part in ROLLOUT_PARTS))
        lines.append(f"| {implementation}{VEC_ENV_LABELS[vec_env]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot() -> None:
    """Draw the bars of the CPU results and write the tables."""
    from matplotlib.figure import Figure

    results = json.loads((RESULTS / "speed_cpu.json").read_text())
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(TASKS))
    for ax, task in zip(axes, TASKS, strict=True):
        rows = end_to_end(results, task)
        labels, (speeds, ratios) = [*rows], zip(*rows.values(), strict=True)
        colors = ["tab:red" if label.startswith("R2VPO") else "tab:gray" for label in labels]
        bars = ax.barh(labels, speeds, color=colors)
        ax.bar_label(bars, labels=[f"{ratio:.1f}×" for ratio in ratios], padding=3)
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.set(title=task, xlabel="environment steps per second")
    figure.savefig(PICTURE, dpi=120)
    tables = (minibatch_table(results, "cpu"), end_to_end_table(results), rollout_table(results), footprint_sentence(results))
    replace_in(DOCS / "speed.md", "speed", "\n\n".join(tables))
    replace_in(README, "speed", tables[1])
    results = json.loads((RESULTS / "speed_cuda.json").read_text())
    replace_in(DOCS / "speed.md", "speed_cuda", minibatch_table(results, "cuda") + "\n\n" + cuda_sentence(results))


def cuda_sentence(results: dict[str, Any]) -> str:
    """
    :param results: The results file of a card
    :return: Compile time and where it was measured, in words
    """
    compile_seconds = results["footprint"]["R2VPO compiled"]["compile_seconds"]
    versions = results["versions"]
    return (
        f"Compiling takes {compile_seconds:.0f} s once. {results['machine']}, {results['date']}, torch {versions['torch']}; "
        f"medians of {len(results['minibatch_seconds'][0]['values'])} turns."
    )


def footprint_sentence(results: dict[str, Any]) -> str:
    """
    :param results: The results file
    :return: Compile time, break-even and memory, in words
    """
    foot = results["footprint"]
    seconds = minibatch_medians(results, "minibatch_seconds", 64, (64, 64))
    compile_seconds = foot["R2VPO compiled"]["compile_seconds"]
    minibatches = compile_seconds / (seconds["R2VPO plain"] - seconds["R2VPO compiled"])
    repeats = [len(row["values"]) for part in jobs_of("cpu") for row in results[part]]
    memory = ", ".join(f"{name} {foot[name]['peak_mib']:.0f} MiB" for name in IMPLEMENTATIONS["cpu"])
    return (
        f"Compiling takes {compile_seconds:.0f} s once and is earned back after {minibatches:,.0f} minibatches of 64, "
        f"which are {minibatches * 64 / N_EPOCHS:,.0f} environment steps. Peak memory: {memory}. "
        f"{results['machine']}, one thread, {results['date']}, torch {results['versions']['torch']}, "
        f"JAX {results['versions']['jax']}; medians of {min(repeats)} to {max(repeats)} turns."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plot", "worker"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("footprint", *jobs_of("cpu")), help="parts to measure")
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS["cpu"], help="of a worker")
    args = parser.parse_args()
    if args.command == "run":
        run(args.device, args.repeats, args.only)
    elif args.command == "plot":
        plot()
    else:
        answer_jobs(args.implementation, args.device)
