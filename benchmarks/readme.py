"""The tables of README and docs are written by the commands that measured them."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


def replace_in(file: Path, name: str, text: str) -> None:
    """
    :param file: A Markdown file
    :param name: Of the place, which stands between ``<!-- name -->`` and ``<!-- /name -->``
    :param text: What is to stand there
    :raises ValueError: When the file has no such place
    """
    content, n_places = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", file.read_text(), flags=re.DOTALL
    )
    if n_places != 1:
        raise ValueError(f"{file.name} has {n_places} places named {name!r}, it must have one")
    file.write_text(content)
