"""Arguments of RL Zoo's commands, before they are parsed there."""

import argparse
from typing import Any


def take(names: tuple[str, ...], arguments: list[str]) -> tuple[str | None, list[str]]:
    """
    :param names: Names of one argument
    :param arguments: Arguments of one of RL Zoo's commands
    :return: Its value, and the other arguments
    """
    # argparse would take RL Zoo's -iqm for -i qm
    value, others, remaining = None, [], iter(arguments)
    for argument in remaining:
        name, equals, attached = argument.partition("=")
        if name in names:
            value = attached if equals else next(remaining, None)
        else:
            others.append(argument)
    return value, others


def is_search(arguments: list[str]) -> bool:
    """
    :param arguments: Arguments of RL Zoo's ``train``
    :return: Whether hyperparameters are to be searched for: ``-optimize``, ``--optimize-hyperparameters`` or ``--optimize``
    """
    return any(argument.startswith(("-optimize", "--optimize")) for argument in arguments)


def require(names: tuple[str, ...], arguments: list[str]) -> None:
    """
    :param names: Names of one argument
    :param arguments: Arguments of one of RL Zoo's commands
    :raises ValueError: When it is not among them
    """
    given = {argument.split("=")[0] for argument in arguments}
    if not given & {*names, "-h", "--help"}:
        raise ValueError(f"{'/'.join(names)} is missing (--help lists the arguments)")


def python_values(store_dict: type[argparse.Action]) -> type[argparse.Action]:
    """
    :param store_dict: RL Zoo's parser of ``name:value``, where the values are Python
    :return: The same, for which a value that is no Python is an error in the arguments
    """

    class PythonValues(store_dict):  # type: ignore[misc, valid-type]
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            try:
                super().__call__(parser, namespace, values, option_string)
            except Exception as e:
                raise argparse.ArgumentError(
                    self, f"{' '.join(values)} is not NAME:VALUE with a Python value ({e}): text needs quotes, NAME:\"'text'\""
                ) from e

    return PythonValues
