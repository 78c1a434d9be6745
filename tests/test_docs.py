"""Pages do what they say: their code is run from top to bottom, in an empty folder, with fewer images and steps."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from sybil import Example, Sybil
from sybil.parsers.abstract import AbstractCodeBlockParser
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

import ldnq as package
from ldnq.cli import main
from ldnq.datasets import datasets, digits
from ldnq.formats import formats
from ldnq.solvers import solvers

CHECKOUT = Path(package.__file__).parent.parent
pytestmark = pytest.mark.skipif(not (CHECKOUT / "mkdocs.yml").is_file(), reason="needs a checkout")
PAGES = sorted((CHECKOUT / "docs").glob("*.md"))
# Of what pages leave to commands: seconds instead of minutes.
TINY = {"quantize": {"solver": "nearest", "samples": 16, "views": 0, "cascade_epochs": 0, "distillation_steps": 1}}


class FileParser(AbstractCodeBlockParser):
    """Blocks with a title are files of that name."""

    language = "file"

    def __init__(self) -> None:
        super().__init__([FencedCodeBlockLexer(r'\w+ title="[^"]+"', {"language": "arguments", "source": "source"})])

    def __call__(self, document):
        for region in self.lexers(document):
            region.parsed, region.evaluator = region.lexemes["source"], self.evaluate
            yield region

    def evaluate(self, example: Example) -> None:
        name = example.region.lexemes["arguments"].split('"')[1]
        Path(name).write_text(example.parsed, encoding="utf-8")


def run_shell(example: Example) -> None:
    """Commands of ldnq in this process, which has torch already, others in a shell."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["ldnq"]:
            result = CliRunner().invoke(main, words[1:], default_map=TINY)
            assert result.exit_code == 0, f"{line}\n{result.stderr}"
        elif words:
            subprocess.run(["bash", "-euc", line], check=True)


SYBIL = Sybil([FileParser(), PythonCodeBlockParser(), CodeBlockParser("sh", run_shell), SkipParser()])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_from_top_to_bottom(path, workdir, monkeypatch):
    for registry in (datasets, formats, solvers):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(digits, "TEST_FRACTION", 0.1)
    monkeypatch.syspath_prepend(workdir)
    for example in SYBIL.parse(path).examples():
        example.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_block_is_of_a_language_that_is_passed_over(path):
    fences = re.findall(r"^```(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences) <= {"sh", "python", "toml", "text"}
