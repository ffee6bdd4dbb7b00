"""
A training of a benchmark that is looked at more closely: how the ratio spreads epoch by epoch, and how much of its gradient
a sample keeps. Called as training.py.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import protocol
import torch as th
from protocol import Run
from training import rounded, train

from sb3_r2vpo import objective, updater
from sb3_r2vpo.rollouts import Samples, whole_rollout

#: Edges of log ρ; what lies beyond counts in the outermost bins
LOG_RATIOS = np.linspace(-1.0, 1.0, 81)
#: Edges of |Â| and of the distance |log ρ| that a sample has gone in the direction of its advantage
ADVANTAGES = np.array([0.0, 0.5, 1.0, 2.0, np.inf])
DISTANCES = np.array([0.0, 0.05, 0.1, 0.2, 0.4, np.inf])
#: As many updates are looked at, evenly spaced over training
N_UPDATES = 20


class Probe:
    """
    Counts, over the updates that it looks at.

    :param n_updates: How many updates the training has
    :param n_epochs: Of each update
    """

    def __init__(self, n_updates: int, n_epochs: int) -> None:
        self.every = max(1, n_updates // N_UPDATES)
        self.ratios = np.zeros((n_epochs, len(LOG_RATIOS) - 1))
        self.samples = np.zeros((len(ADVANTAGES) - 1, len(DISTANCES) - 1))
        self.onward, self.free = np.zeros_like(self.samples), np.zeros_like(self.samples)

    def look(self, plain: updater.Updater, rollout: Samples, epoch: int) -> None:
        """
        :param plain: What took the gradient steps
        :param rollout: All samples of the rollout
        :param epoch: How many epochs are done
        """
        log_ratio, advantages, weight = gradient_weights(plain, rollout)
        self.ratios[epoch - 1] += np.histogram(log_ratio.clip(LOG_RATIOS[0], LOG_RATIOS[-1]), LOG_RATIOS)[0]
        if epoch == len(self.ratios):
            # Samples that have gone the other way are pushed by everybody
            along = log_ratio * np.sign(advantages) > 0
            bins = (np.abs(advantages[along]), np.abs(log_ratio[along]))
            self.samples += np.histogram2d(*bins, bins=(ADVANTAGES, DISTANCES))[0]
            onward = weight[along] * np.sign(advantages[along])
            free = np.exp(log_ratio[along]) * np.abs(advantages[along])
            self.onward += np.histogram2d(*bins, bins=(ADVANTAGES, DISTANCES), weights=onward)[0]
            self.free += np.histogram2d(*bins, bins=(ADVANTAGES, DISTANCES), weights=free)[0]

    def record(self) -> dict[str, Any]:
        """
        :return: Shares of the samples by epoch and bin of log ρ; by bin of advantage and distance the share of the samples,
            and the share that they keep of their policy gradient
        """
        with np.errstate(invalid="ignore"):
            ratios, kept = self.ratios / self.ratios.sum(axis=1, keepdims=True), self.onward / self.free
        samples = self.samples / self.samples.sum()
        return {
            name: [[rounded(value) for value in row] for row in values]
            for name, values in (("ratios", ratios), ("kept", kept), ("samples", samples))
        }


def gradient_weights(plain: updater.Updater, rollout: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What the algorithm's own loss does to each sample, by its derivative.

    :param plain: Of any objective
    :param rollout: All samples of the rollout
    :return: For each sample log ρ, the normalized advantage, and the weight of ∇ log π in the ascent, which is
        ρ Â where nothing brakes
    """
    with th.no_grad():
        values, log_prob, entropy = updater.evaluate_actions(plain.policy, rollout)
    log_prob = log_prob.detach().requires_grad_(True)
    with evaluating_to(values, log_prob, entropy):
        loss, _ = plain.evaluate(rollout)
    (gradient,) = th.autograd.grad(loss, log_prob)
    log_ratio = log_prob.detach() - rollout.old_log_prob
    advantages = objective.normalize(rollout.advantages)
    return log_ratio.numpy(), advantages.numpy(), -gradient.numpy() * len(gradient)


@contextmanager
def evaluating_to(*result: Any) -> Iterator[None]:
    """
    :param result: What a policy's evaluation of the actions is taken to give
    """
    before = updater.evaluate_actions
    updater.evaluate_actions = lambda policy, batch: result
    try:
        yield
    finally:
        updater.evaluate_actions = before


class Watched:
    """
    An updater that is looked at after each epoch.

    :param update: The updater
    :param probe: What looks
    :param rollout: All samples of the rollout
    :param n_minibatches: Of each epoch
    """

    def __init__(self, update: Any, probe: Probe, rollout: Samples, n_minibatches: int) -> None:
        self.update, self.probe, self.rollout, self.n_minibatches = update, probe, rollout, n_minibatches
        self.plain = getattr(update, "plain", update)
        self.n_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.update, name)

    def __call__(self, batch: Samples) -> th.Tensor:
        metrics = self.update(batch)
        self.n_steps += 1
        if self.n_steps % self.n_minibatches == 0:
            self.probe.look(self.plain, self.rollout, epoch=self.n_steps // self.n_minibatches)
        return metrics


def probed(make: Any, probe: Probe) -> Any:
    """
    :param make: R2VPO or a peer through its updater
    :param probe: What looks
    :return: The same, looked at
    """

    class Probed(make):
        n_rollouts = 0

        def _make_updater(self, *args: Any) -> Any:
            update = super()._make_updater(*args)
            self.n_rollouts += 1
            if self.n_rollouts % probe.every > 0:
                return update
            n_minibatches = self.n_steps * self.n_envs // self.batch_size
            return Watched(update, probe, whole_rollout(self.rollout_buffer), n_minibatches)

    return Probed


def probe_training(run: Run) -> dict[str, Any]:
    """
    :param run: A training
    :return: Its record, with what the probe saw
    """
    config = protocol.configuration(run)
    n_updates = -(-config["total_timesteps"] // (config["n_envs"] * config["n_steps"]))
    probe = Probe(n_updates, config["n_epochs"])
    algorithm = protocol.ALGORITHMS[run.algorithm]
    # Only in this process
    protocol.ALGORITHMS[run.algorithm] = algorithm._replace(make=probed(algorithm.make, probe))
    return {**train(run), **probe.record()}


if __name__ == "__main__":
    sys.stdout, stdout = sys.stderr, sys.stdout
    print(json.dumps(probe_training(Run(**json.loads(sys.argv[1])))), file=stdout)
