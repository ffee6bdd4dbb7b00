import warnings
from typing import Any, TypeVar

from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_r2vpo.r2vpo import R2VPO

SelfRecurrentR2VPO = TypeVar("SelfRecurrentR2VPO", bound="RecurrentR2VPO")


class RecurrentR2VPO(R2VPO, RecurrentPPO):  # type: ignore[misc]
    """
    R2VPO with LSTM policies: the updates are R2VPO's, policies, buffers and rollouts are those of sb3-contrib's
    RecurrentPPO, and it stands wherever RecurrentPPO does. A minibatch holds sequences, padded to the same length; the
    padding has no part in the update.

    The gradient step is not compiled: minibatches differ in the number and length of their sequences (on CartPole 63 ways in
    160 minibatches, each of which would have to be compiled for), and the policies' code asks tensors for their values. It is
    faster than RecurrentPPO's all the same, as the LSTM runs through a minibatch at once.

    :param policy: The policy model to use (MlpLstmPolicy, CnnLstmPolicy, MultiInputLstmPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update, with RecurrentPPO's default
    :param batch_size: Minibatch size, with RecurrentPPO's default
    :param args: The other arguments of `R2VPO`
    :param kwargs: The other arguments of `R2VPO`
    :raises ValueError: When an argument is out of its range
    """

    policy_aliases = RecurrentPPO.policy_aliases
    policy_input = "lstm_states"

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, n_steps, batch_size, *args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.rollout_buffer_class is not None:
            # An argument that RecurrentPPO does not have
            self.rollout_buffer = self.rollout_buffer_class(  # type: ignore[misc]
                self.n_steps,
                self.observation_space,
                self.action_space,
                self.rollout_buffer.hidden_state_shape,  # type: ignore[attr-defined]
                device=self.device,
                gamma=self.gamma,
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
                **self.rollout_buffer_kwargs,
            )

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.compile is True:
            warnings.warn("`compile` is True, but the gradient step of an LSTM is not compiled: it runs plain")

    def _compile_step(self) -> bool:
        return False

    def learn(
        self: SelfRecurrentR2VPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RecurrentR2VPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentR2VPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
