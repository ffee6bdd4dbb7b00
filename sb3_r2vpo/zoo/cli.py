"""RL Zoo's command line with R2VPO registered in it: ``r2vpo train --env HalfCheetah-v5``."""

import sys
from collections.abc import Callable

from sb3_r2vpo.zoo import ALGO, register

HELP = f"""usage: r2vpo COMMAND [arguments]

RL Zoo's command line, with {ALGO} as the default --algo.

commands:
  train   train an agent            r2vpo train --env HalfCheetah-v5 --progress
  enjoy   watch a trained agent     r2vpo enjoy --env HalfCheetah-v5 -f logs

`r2vpo train --vec-env envpool` trains on EnvPool's environments, which step in C++ threads, also on those that Gymnasium
does not have, as DeepMind Control's --env CheetahRun-v1. `enjoy` knows what the agent was trained on.

`r2vpo COMMAND --help` lists the arguments."""


def train() -> None:
    from rl_zoo3.train import train

    train()


def enjoy() -> None:
    from rl_zoo3.enjoy import enjoy

    enjoy()


def prepare(command: str, arguments: list[str]) -> list[str]:
    """
    :param command: One of the commands
    :param arguments: Its arguments
    :return: Those that RL Zoo understands
    """
    from sb3_r2vpo.zoo.envpool import prepare_training, register_env

    register_env(arguments)
    return prepare_training(arguments) if command == "train" else arguments


COMMANDS: dict[str, Callable[[], None]] = {"train": train, "enjoy": enjoy}


def main() -> None:
    """
    Entry point of the ``r2vpo`` console script and of ``python -m sb3_r2vpo``.
    """
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(HELP)
        return
    command, arguments = sys.argv[1], sys.argv[2:]
    if command not in COMMANDS:
        sys.exit(f"r2vpo: unknown command {command!r}, choose from: {', '.join(COMMANDS)}")
    try:
        register()
        arguments = prepare(command, arguments)
    except (ImportError, ValueError) as e:
        sys.exit(f"r2vpo: {e}")
    # RL Zoo's own default is PPO
    if not any(argument == "--algo" or argument.startswith("--algo=") for argument in arguments):
        arguments = ["--algo", ALGO, *arguments]
    sys.argv = [f"r2vpo {command}", *arguments]
    COMMANDS[command]()


if __name__ == "__main__":
    main()
