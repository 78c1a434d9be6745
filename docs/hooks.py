"""What MkDocs is told beside `mkdocs.yml`: how equations and examples in help and docstrings become HTML."""

import html
import inspect
import re

import click
import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

from ldnq.cli import main

# As pymdownx.arithmatex marks equations, in a line and on lines of their own.
EQUATION = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)
# What click is not to rewrap.
EXAMPLE = re.compile(r"^\x08\n((?:.+\n?)+)", re.MULTILINE)
DOCTEST = re.compile(r"^(>>> (?:.+\n?)+)", re.MULTILINE)


def on_startup(**_) -> None:
    """Let mkdocs-click see the examples in the help of every command as what they are."""
    context = click.Context(main)
    for command in (main, *(main.get_command(context, name) for name in main.list_commands(context))):
        command.help = EXAMPLE.sub(lambda match: _fence("sh", match), inspect.cleandoc(command.help))


def on_page_content(text: str, **_) -> str:
    """Browsers draw MathML themselves: no script and no font comes with a page."""
    return EQUATION.sub(_mathml, text)


class Doctests(griffe.Extension):
    """Let mkdocstrings see doctests as what they are."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """`obj` with its doctests fenced."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(lambda match: _fence("pycon", match), obj.docstring.value)


def _fence(language: str, match: re.Match) -> str:
    return f"```{language}\n{match[1].rstrip()}\n```\n"


def _mathml(match: re.Match) -> str:
    made = convert(html.unescape(match[2]), display="block" if match[1] == "[" else "inline")
    if "\\" in made or ">&<" in made:
        raise PluginError(f"latex2mathml does not know all of {match[2]}")
    return made
