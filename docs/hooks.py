"""What MkDocs is told beside `mkdocs.yml`: equations become MathML, and examples of commands become blocks of code."""

import html
import inspect
import re

import click
from latex2mathml.converter import convert

from ldnq.cli import main

# As pymdownx.arithmatex marks equations, in a line and on lines of their own.
EQUATION = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)
# What click is not to rewrap.
EXAMPLE = re.compile(r"^\x08\n((?:.+\n?)+)", re.MULTILINE)


def on_startup(**_) -> None:
    """Let mkdocs-click see the examples in the help of every command as what they are."""
    context = click.Context(main)
    for command in (main, *(main.get_command(context, name) for name in main.list_commands(context))):
        help = inspect.cleandoc(command.help)
        command.help = EXAMPLE.sub(lambda match: f"```sh\n{match[1].rstrip()}\n```\n", help)


def on_page_content(text: str, **_) -> str:
    """Browsers draw MathML themselves: no script and no font comes with a page."""
    return EQUATION.sub(_mathml, text)


def _mathml(match: re.Match) -> str:
    return convert(html.unescape(match[2]), display="block" if match[1] == "[" else "inline")
