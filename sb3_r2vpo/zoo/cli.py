"""RL Zoo's command line with R2VPO registered in it: ``r2vpo train --env HalfCheetah-v5``."""

import runpy
import sys
import warnings
from collections.abc import Callable

from sb3_r2vpo.workers import n_processes
from sb3_r2vpo.zoo import ALGO, import_zoo, register, replace_in_zoo
from sb3_r2vpo.zoo.arguments import python_values, require, take
from sb3_r2vpo.zoo.errors import is_for_the_user, message_of, short_traceback
from sb3_r2vpo.zoo.plots import check_evaluated, check_runs, save_shown_figures
from sb3_r2vpo.zoo.screen import has_screen, render_without_screen

#: Where `train` writes to and the other commands look, `-f` is another folder
LOGS = "logs"
TRAINED = ["--algo", ALGO, "--folder", LOGS]
PLOTTED = ["-a", ALGO, "-f", LOGS]


def train(arguments: list[str]) -> None:
    """train an agent, resume a training (--resume), begin with an agent (-i), tune hyperparameters (-optimize)"""
    import_zoo()
    from sb3_r2vpo.zoo.repeated import take_trainings_per_trial
    from sb3_r2vpo.zoo.resuming import take_resume

    if {"-h", "--help"} & set(arguments):
        print(TRAIN_HELP)
    arguments, resumed_run = take_resume(arguments, LOGS)
    arguments, trainings_per_trial = take_trainings_per_trial(arguments)
    prepare(arguments)
    from sb3_r2vpo.zoo.envpool import prepare_training
    from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
    from sb3_r2vpo.zoo.lasting import LastingExperimentManager
    from sb3_r2vpo.zoo.trained_agents import check_trained_agent

    LastingExperimentManager.resumed_run = resumed_run
    R2VPOExperimentManager.trainings_per_trial = trainings_per_trial
    check_trained_agent(take(("-i", "--trained-agent"), arguments)[0])
    arguments = prepare_training(arguments)
    if n_processes() > 1:
        from sb3_r2vpo.zoo.many import prepare_process

        prepare_process(arguments)
    run("train", ["--algo", ALGO, *arguments])


def enjoy(arguments: list[str]) -> None:
    """watch a trained agent"""
    if not has_screen() and "--no-render" not in arguments:
        print("There is no screen, so --no-render (`r2vpo record_video` writes a video)")
        arguments = ["--no-render", *arguments]
    prepare(arguments)
    from sb3_r2vpo.zoo.hub import adapt_download

    adapt_download()
    run("enjoy", [*TRAINED, *arguments])


def record_video(arguments: list[str]) -> None:
    """write a video of a trained agent, needs no screen"""
    prepare_video(arguments)
    run("record_video", [*TRAINED, *arguments])


def plot_train(arguments: list[str]) -> None:
    """draw the returns of training runs"""
    plot("plot_train", [*PLOTTED, *arguments])


def all_plots(arguments: list[str]) -> None:
    """draw the evaluations of runs, by algorithm and environment, with a table (-o saves them)"""
    require(("-e", "--env"), arguments)
    check_evaluated([*PLOTTED, *arguments])
    plot("all_plots", [*PLOTTED, *arguments])


def plot_from_file(arguments: list[str]) -> None:
    """compare what all_plots has saved, with confidence intervals (--rliable)"""
    names = ("-i", "--input")
    require(names, arguments)
    if (saved_results := take(names, arguments)[0]) is not None:
        check_runs(saved_results)
    plot("plot_from_file", arguments)


def push_to_hub(arguments: list[str]) -> None:
    """share a trained agent on the Hugging Face Hub"""
    prepare_video(arguments)
    from sb3_r2vpo.zoo.hub import adapt_upload

    adapt_upload()
    run("push_to_hub", [*TRAINED, *arguments])


def load_from_hub(arguments: list[str]) -> None:
    """download a trained agent from the Hugging Face Hub"""
    prepare(arguments)
    from sb3_r2vpo.zoo.hub import adapt_download

    adapt_download()
    run("load_from_hub", [*TRAINED, *arguments])


def prepare(arguments: list[str]) -> None:
    """
    Put R2VPO into RL Zoo, EnvPool's environments, and what says more about wrong arguments.

    :param arguments: Arguments of the command
    """
    register()
    from rl_zoo3.utils import StoreDict

    from sb3_r2vpo.zoo.envpool import register_env
    from sb3_r2vpo.zoo.mujoco_warnings import take_over_warnings
    from sb3_r2vpo.zoo.trained_agents import get_model_path

    replace_in_zoo("StoreDict", python_values(StoreDict))
    replace_in_zoo("get_model_path", get_model_path)
    register_env(arguments)
    take_over_warnings(take(("--env",), arguments)[0])


def prepare_video(arguments: list[str]) -> None:
    """
    The same for commands that load an agent to look at it.

    :param arguments: Arguments of the command
    """
    if not has_screen():
        render_without_screen(take(("--env",), arguments)[0])
    prepare(arguments)
    # They load it with its environment, which is about training on it
    warnings.filterwarnings("ignore", "You have specified a mini-batch size")


def run(command: str, arguments: list[str]) -> None:
    """
    :param command: One of RL Zoo's scripts
    :param arguments: Its arguments
    """
    sys.argv = [f"r2vpo {command}", *arguments]
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__")


def plot(command: str, arguments: list[str]) -> None:
    """
    :param command: One of RL Zoo's plots
    :param arguments: Its arguments
    :raises ImportError: When what they are drawn with is not installed
    """
    import_zoo()
    try:
        from rl_zoo3 import plots
    except ImportError as e:
        raise ImportError(f"RL Zoo's plots cannot be imported ({e}): pip install 'sb3_r2vpo[zoo]'") from e
    save_shown_figures(command)
    sys.argv = [f"r2vpo {command}", *arguments]
    getattr(plots, command)()


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    function.__name__: function
    for function in (train, enjoy, record_video, plot_train, all_plots, plot_from_file, push_to_hub, load_from_hub)
}

TRAIN_HELP = """R2VPO's own arguments, beside those of RL Zoo below:
  --resume [FOLDER]         go on with the latest run of --env, or with that in FOLDER, with the arguments it was started with
  --vec-env envpool         train on EnvPool's environments
  --trainings-per-trial N   score a trial of a search by the mean of N trainings
"""

HELP = f"""usage: r2vpo COMMAND [arguments]

RL Zoo's command line, with {ALGO} as the default --algo and {LOGS} as the default folder.

commands:
{chr(10).join(f"  {name:<16}{function.__doc__}" for name, function in COMMANDS.items())}

`r2vpo COMMAND --help` lists the arguments.

  r2vpo train --env HalfCheetah-v5 --progress
  r2vpo train --env HalfCheetah-v5 --resume    # the latest run, or --resume FOLDER: goes on however it has ended
  r2vpo enjoy --env HalfCheetah-v5

`r2vpo train --optimize ... --trainings-per-trial 3` scores a trial by the mean of three trainings, where one is chance.

`--algo r2vpo_lstm` has LSTM policies (RecurrentR2VPO), `--algo maskable_r2vpo` invalid action masking (MaskableR2VPO).

`torchrun --nproc-per-node 4 -m sb3_r2vpo train --env HalfCheetah-v5` trains in four processes.

`r2vpo train --vec-env envpool` trains on EnvPool's environments, which step in C++ threads, also on those that Gymnasium
does not have, as DeepMind Control's --env CheetahRun-v1. The other commands know what the agent was trained on."""


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
        COMMANDS[command](arguments)
    except Exception as e:
        if is_for_the_user(e):
            sys.exit(f"r2vpo: {message_of(e)}")
        raise e.with_traceback(short_traceback(e)) from e.__cause__
    except KeyboardInterrupt:
        print("r2vpo: interrupted", file=sys.stderr)
        # As shells have it
        sys.exit(130)


if __name__ == "__main__":
    main()
