"""What the commands print. What people read goes to standard error; standard output is for what scripts read."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts on standard output.")


def say(text: str) -> None:
    """Print a line for people, as it is."""
    console.print(text, markup=False, soft_wrap=True)


def say_error(sentence: str) -> None:
    """Print why a command ends."""
    console.print(Text.assemble(("error:", "red"), " ", sentence), soft_wrap=True)


def say_left_out(sentences: Sequence[str], most: int = 20) -> None:
    """Print what is not sent, in a few lines even if it is much."""
    for sentence in sentences[:most]:
        say(f"left out: {sentence}")
    if len(sentences) > most:
        say(f"left out: {len(sentences) - most} more")


def print_row(*cells: str) -> None:
    """Print cells with tabs between them on standard output."""
    click.echo("\t".join(map(printable, cells)).rstrip())


def printable(text: str) -> str:
    """What others have sent must not steer the terminal, nor break a line of a table."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def progress_bar() -> Progress:
    """A progress bar on a terminal; nothing elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
