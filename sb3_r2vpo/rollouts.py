"""From SB3's rollout buffer to minibatches on the device, uploaded once per rollout."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

Samples = RolloutBufferSamples | DictRolloutBufferSamples


def minibatch_source(buffer: RolloutBuffer) -> Callable[[int], Iterator[Samples]]:
    """
    What yields one epoch of minibatches at each call with a batch size. Equal to ``buffer.get`` up to where the
    data lie: SB3's own buffers are uploaded once, here; a buffer class that overrides ``get`` is asked for its own.

    :param buffer: A full rollout buffer
    :return: A function from the minibatch size to the epoch's minibatches
    """
    if not yields_plain_minibatches(buffer):
        return buffer.get
    return partial(shuffled_minibatches, upload(buffer))


def yields_plain_minibatches(buffer: RolloutBuffer) -> bool:
    """
    :param buffer: A rollout buffer
    :return: Whether its minibatches are made by SB3's own code
    """
    return any(
        type(buffer).get is plain.get and type(buffer)._get_samples is plain._get_samples
        for plain in (RolloutBuffer, DictRolloutBuffer)
    )


def upload(buffer: RolloutBuffer) -> Samples:
    """
    The whole rollout as tensors on the buffer's device, in the order and types of ``RolloutBuffer.get``.
    The buffer is left untouched.

    :param buffer: A full rollout buffer
    :return: Samples with leading dimension ``buffer_size * n_envs``
    """

    def flat(array: np.ndarray) -> th.Tensor:
        # `get` may already have flattened the buffer in place
        array = array if buffer.generator_ready else buffer.swap_and_flatten(array)
        return buffer.to_torch(array)

    actions = flat(buffer.actions.astype(np.float32, copy=False))
    scalars = (flat(array).flatten() for array in (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns))
    if isinstance(buffer, DictRolloutBuffer):
        observations = {key: flat(obs) for key, obs in buffer.observations.items()}
        return DictRolloutBufferSamples(observations, actions, *scalars)
    return RolloutBufferSamples(flat(buffer.observations), actions, *scalars)


def whole_rollout(buffer: RolloutBuffer) -> Samples:
    """
    The whole rollout in one minibatch of any buffer. Neither the buffer nor the random numbers to come are changed.

    :param buffer: A full rollout buffer
    :return: Samples, in no particular order
    """
    if yields_plain_minibatches(buffer):
        return upload(buffer)
    state = np.random.get_state()
    try:
        return next(deepcopy(buffer).get(None))
    finally:
        np.random.set_state(state)


def shuffled_minibatches(samples: Samples, batch_size: int) -> Iterator[Samples]:
    """
    One epoch over the samples, in the order of one ``np.random.permutation`` as in ``RolloutBuffer.get``.

    :param samples: The whole rollout
    :param batch_size: Minibatch size, the last minibatch may be smaller
    :return: Minibatches
    """
    permutation = th.as_tensor(np.random.permutation(len(samples.actions)), device=samples.actions.device)
    shuffled = index(samples, permutation)
    for minibatch in zip(*(tensor.split(batch_size) for tensor in to_tensors(shuffled)), strict=True):
        yield from_tensors(minibatch, like=samples)


def index(samples: Samples, indices: th.Tensor | slice) -> Samples:
    """
    :param samples: Samples
    :param indices: What to take along the first dimension
    :return: The samples at the indices
    """
    return from_tensors([tensor[indices] for tensor in to_tensors(samples)], like=samples)


def to_tensors(samples: Samples) -> list[th.Tensor]:
    """
    :param samples: Samples
    :return: Their tensors in a row
    """
    observations, *rest = samples
    return [*observations.values(), *rest] if isinstance(observations, dict) else [observations, *rest]


def from_tensors(tensors: Sequence[th.Tensor], like: Samples) -> Samples:
    """
    The inverse of `to_tensors`.

    :param tensors: Tensors in a row
    :param like: Samples of the same structure
    :return: Samples
    """
    if isinstance(like.observations, dict):
        n_keys = len(like.observations)
        observations = dict(zip(like.observations, tensors[:n_keys], strict=True))
        return type(like)(observations, *tensors[n_keys:])
    return type(like)(*tensors)


def real_samples(samples: Samples) -> th.Tensor | None:
    """
    :param samples: Samples, maybe in sequences that were padded to the same length, with a ``mask``
    :return: Which of them are no padding, boolean tensor, ``None`` when all are
    """
    mask = getattr(samples, "mask", None)
    return None if mask is None else mask > 0.5


def without_padding(samples: Samples) -> Samples:
    """
    :param samples: Samples, maybe in padded sequences
    :return: The same, where what the objective takes of them is that of the real ones alone
    """
    if (real := real_samples(samples)) is None:
        return samples
    names = ("old_values", "old_log_prob", "advantages", "returns")
    return samples._replace(**{name: getattr(samples, name)[real] for name in names})


def with_first_states_reset(samples: Samples) -> Samples:
    """
    sb3-contrib's LSTM policies go through a minibatch timestep by timestep as soon as an episode starts in it, ten times
    as slow with sequences of 128. An episode starts a sequence of its own: where its first state is zero already, there is
    nothing left to reset.

    :param samples: Samples, maybe in sequences with the states of an LSTM
    :return: The same with the states reset
    """
    states, starts = (getattr(samples, name, None) for name in ("lstm_states", "episode_starts"))
    if states is None or starts is None:
        return samples
    starts = starts.unflatten(0, (states.pi[0].shape[1], -1))
    if starts[:, 1:].any():
        # Not so in sb3-contrib's own buffers
        return samples
    going_on = 1.0 - starts[:, :1]
    reset = type(states)._make(tuple(going_on * x for x in pair) for pair in states)
    others = dict(lstm_states=reset, episode_starts=th.zeros_like(starts).flatten())
    return samples._replace(**others)
