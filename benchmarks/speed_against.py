"""
Speed of the compiled gradient step and of compiled rollouts beside those of another commit, in turns in one process:

    python benchmarks/speed_against.py 202534f

Prints the medians of the ratios, each taken within a turn, so that a machine whose speed drifts favours none. The time is that
of the processor. The environment costs next to nothing: what rollouts take is all our own and SB3's.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch as th
from speed import N_ENVS, random_vec_env

import sb3_r2vpo

ROOT = Path(__file__).parent.parent
OTHER = "sb3_r2vpo_other"


def package_at(commit: str, folder: Path) -> Any:
    """
    :param commit: A commit of this repository
    :param folder: Where to write its package, under another name
    :return: The imported package
    """
    archive = subprocess.run(["git", "archive", commit, "sb3_r2vpo"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "sb3_r2vpo").rename(folder / OTHER)
    for path in (folder / OTHER).rglob("*.py"):
        path.write_text(path.read_text().replace("sb3_r2vpo", OTHER))
    sys.path.insert(0, str(folder))
    return import_module(OTHER)


def compare(packages: list[Any], batch_size: int, n_turns: int) -> dict[str, tuple[float, float]]:
    """
    :param packages: The other package and this one
    :param batch_size: Minibatch size
    :param n_turns: How often each is measured
    :return: Of update, rollout and both: microseconds here per minibatch, per step and per step, ratio to the other
    """
    n_steps = max(2048, 4 * batch_size) // N_ENVS
    models = []
    for package in packages:
        arguments: dict[str, Any] = dict(n_steps=n_steps, batch_size=batch_size, learning_rate=1e-7, seed=0, device="cpu")
        models.append(package.R2VPO("MlpPolicy", random_vec_env(), compile=True, **arguments).learn(n_steps * N_ENVS))
    callbacks = [model._setup_learn(2**40, reset_num_timesteps=False)[1] for model in models]
    parts: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
        "update": (lambda model, _: model.train(), models[0].n_epochs * n_steps * N_ENVS // batch_size),
        "rollout": (lambda model, c: model.collect_rollouts(model.env, c, model.rollout_buffer, n_steps), n_steps),
    }
    turns: dict[str, list[list[float]]] = {name: [] for name in parts}
    for turn in range(n_turns):
        for name, (part, _) in parts.items():
            taken = [0.0, 0.0]
            for i in (0, 1) if turn % 2 else (1, 0):
                start = time.process_time()
                part(models[i], callbacks[i])
                taken[i] = time.process_time() - start
            turns[name].append(taken)
    turns["both"] = [[sum(x) for x in zip(*taken, strict=True)] for taken in zip(*turns.values(), strict=True)]
    answer = {}
    for name, n in [*((name, n) for name, (_, n) in parts.items()), ("both", n_steps)]:
        here = statistics.median(this for _, this in turns[name][1:]) / n
        answer[name] = (here * 1e6, statistics.median(this / other for other, this in turns[name][1:]))
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--turns", type=int, default=41)
    args = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        packages = [package_at(args.commit, Path(temporary)), sb3_r2vpo]
        for batch_size in args.batch_sizes:
            for name, (microseconds, ratio) in compare(packages, batch_size, args.turns).items():
                print(f"batch {batch_size:4}  {name:7}  {microseconds:7.1f} µs here, {ratio:.3f} times {args.commit}")
