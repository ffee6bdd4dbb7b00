"""
Speed of the gradient step with action masks and with an LSTM beside sb3-contrib's MaskablePPO and RecurrentPPO.

    python benchmarks/speed_contrib.py          # writes benchmarks/results/speed_contrib.json and the table of docs/contrib.md

The models take turns in one process with one thread, and the time is that of the processor: neither a machine whose speed
drifts nor one that has other things to do favours one.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch as th
from readme import DOCS, replace_in
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from speed import machine
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_r2vpo import MaskableR2VPO, RecurrentR2VPO

RESULTS = Path(__file__).parent / "results" / "speed_contrib.json"
N_STEPS, N_EPOCHS, BATCH_SIZES = 2048, 2, (64, 256, 1024)


def masked_env() -> VecEnv:
    """
    :return: Of 20 discrete actions half are invalid
    """
    return make_vec_env(lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), seed=0)


def short_episodes() -> VecEnv:
    """
    :return: CartPole, whose sequences are short and of many lengths as long as the policy is random
    """
    return make_vec_env("CartPole-v1", seed=0)


#: Algorithm, policy, environment and arguments; the first of a kind is what the others are compared with
IMPLEMENTATIONS: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
    "MaskablePPO": (MaskablePPO, "MlpPolicy", masked_env, {}),
    "MaskableR2VPO plain": (MaskableR2VPO, "MlpPolicy", masked_env, {"compile": False}),
    "MaskableR2VPO compiled": (MaskableR2VPO, "MlpPolicy", masked_env, {"compile": True}),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", short_episodes, {"policy_kwargs": {"lstm_hidden_size": 64}}),
    "RecurrentR2VPO": (RecurrentR2VPO, "MlpLstmPolicy", short_episodes, {"policy_kwargs": {"lstm_hidden_size": 64}}),
}
REFERENCES = {name: "MaskablePPO" if "Maskable" in name else "RecurrentPPO" for name in IMPLEMENTATIONS}


def make_model(implementation: str, batch_size: int) -> Any:
    """
    :param implementation: One of ``IMPLEMENTATIONS``
    :param batch_size: Minibatch size
    :return: A model with a full rollout buffer, everything compiled
    """
    algorithm, policy, make_env, kwargs = IMPLEMENTATIONS[implementation]
    # So small a learning rate keeps the policy where it is, however often it is updated on the same rollout
    settings: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=batch_size, n_epochs=N_EPOCHS, learning_rate=1e-7)
    return algorithm(policy, make_env(), seed=0, device="cpu", **settings, **kwargs).learn(N_STEPS)


def measure(batch_size: int, repeats: int) -> dict[str, list[float]]:
    """
    :param batch_size: Minibatch size
    :param repeats: How many turns
    :return: Milliseconds of ``train()`` per minibatch, by implementation and turn
    """
    models = {name: make_model(name, batch_size) for name in IMPLEMENTATIONS}
    values: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(repeats), desc=f"batch {batch_size}"):
        for name, model in models.items():
            start = time.process_time()
            model.train()
            values[name].append(1000 * (time.process_time() - start) * batch_size / (N_EPOCHS * N_STEPS))
    return values


def table(results: dict[str, Any]) -> str:
    """
    :param results: The results file
    :return: Markdown: milliseconds per minibatch, and how many times as fast as sb3-contrib, the median of the turns
    """
    lines = [
        "| `train()`, ms per minibatch | " + " | ".join(IMPLEMENTATIONS) + " |",
        "|---" * (1 + len(IMPLEMENTATIONS)) + "|",
    ]
    for batch_size, values in results["milliseconds"].items():
        ratios = {
            name: statistics.median(x / y for x, y in zip(values[REFERENCES[name]], values[name], strict=True))
            for name in IMPLEMENTATIONS
        }
        cells = [f"{statistics.median(values[name]):.2f} ({ratios[name]:.1f}×)" for name in IMPLEMENTATIONS]
        lines.append(f"| batch {batch_size} | " + " | ".join(cells) + " |")
    load = f"{results['load']:.0f} processes at a time on " if results["load"] > 1.5 else ""
    where = f"Processor time, {load}{results['machine']}, one thread, {results['date']}, torch {results['torch']}."
    return "\n".join([*lines, "", where])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    th.set_num_threads(1)
    milliseconds = {str(batch_size): measure(batch_size, args.repeats) for batch_size in BATCH_SIZES}
    results = dict(
        machine=machine("cpu"),
        # Those who wait for a processor count too, this process among them
        load=os.getloadavg()[-1],
        date=datetime.date.today().isoformat(),
        torch=th.__version__,
        milliseconds=milliseconds,
    )
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    replace_in(DOCS / "contrib.md", "speed_contrib", table(results))
