"""The tables of the README are written by the commands that measured them."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def replace_in_readme(name: str, text: str) -> None:
    """
    :param name: Of the place, which stands between ``<!-- name -->`` and ``<!-- /name -->``
    :param text: What is to stand there
    :raises ValueError: When the README has no such place
    """
    content, n_places = re.subn(
        rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m: m[1] + text + m[2], README.read_text(), flags=re.DOTALL
    )
    if n_places != 1:
        raise ValueError(f"README.md has {n_places} places named {name!r}, it must have one")
    README.write_text(content)
