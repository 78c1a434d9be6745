"""What is known by name and what it says of itself, read from the source: importing it would take seconds."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# Where things of a kind register themselves by name.
SOURCES = {
    "models": "models/*.py",
    "datasets": "datasets/*.py",
    "methods": "quantizers/*.py",
    "solvers": "solvers/*.py",
    "presets": "presets.py",
    "formats": "formats/*.py",
}
PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|[A-Z]{4,} \d{4}")


@dataclass(frozen=True)
class Entry:
    """A `name`, what it stands for and where that was published; `fields` are all constants that it is made of."""

    name: str
    summary: str = ""
    paper: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


def entries(kind: str) -> list[Entry]:
    """All that is in the registry called `kind`, without importing it."""
    trees = [_parse(path) for path in sorted(PACKAGE.glob(SOURCES[kind]))]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    found = [entry for tree in trees for entry in _File(tree, classes).registered(kind)]
    return found + (_torchvision(classes) if kind == "models" else [])


def stages() -> list[Entry]:
    """All stages, in the order in which `ldnq.presets` names them."""
    presets = _parse(PACKAGE / "presets.py").body
    (order,) = (node for node in presets if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "STAGES")
    trees = {path.stem: _parse(path) for path in PACKAGE.glob("stages/*.py")}
    known = {node.name: _of_class(name, node) for name, tree in trees.items() for node in _classes(tree)}
    return [known[name] for name in re.findall(r"\w+", ast.unparse(order.value or order))]


def cited(documentation: str) -> tuple[str, str]:
    """Title and number of the paper that torchvision's `documentation` of a network names first."""
    found = re.search(r"`([^`<]+) <https?://arxiv\.org/(?:abs|pdf)/([\d.]+\d)", " ".join(documentation.split()))
    return (found[1], f"arXiv {found[2]}") if found else ("", "")


class _File:
    """The constants in a file's calls of functions of its own and of `classes` by their names."""

    def __init__(self, tree: ast.Module, classes: Mapping[str, ast.ClassDef]) -> None:
        self.tree, self.classes = tree, classes
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.constants = {
            ast.unparse(node.targets[0]): node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }

    def registered(self, kind: str) -> Iterator[Entry]:
        """What the file enters into the registry called `kind`, as calls and as decorated classes."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                for decorator in node.decorator_list:
                    if name := _first(decorator, f"{kind}.register"):
                        yield _of_class(name, node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                if not (name := _first(node.value, f"{kind}.add")):
                    continue
                fields = self.said(node.value.args[1])
                yield Entry(name, fields.get("summary", ""), fields.get("paper", ""), fields)

    def said(self, call: ast.expr) -> dict[str, Any]:
        """The constants among the arguments of a `call`, and those that the function itself has for others, by name."""
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            return {}
        names: list[str] = []
        own: dict[str, Any] = {}
        if callee := self.classes.get(call.func.id):
            names = [ast.unparse(node.target) for node in callee.body if isinstance(node, ast.AnnAssign)]
        elif function := self.functions.get(call.func.id):
            names = [argument.arg for argument in function.args.args]
            own = self.made(function)
        given = [*zip(names, call.args), *((keyword.arg, keyword.value) for keyword in call.keywords)]
        values = {name: self._constant(node) for name, node in given if name}
        return own | {name: value for name, value in values.items() if value is not None}

    def made(self, function: ast.FunctionDef) -> dict[str, Any]:
        """The constants in what a function returns at its end."""
        last = function.body[-1]
        return self.said(last.value) if isinstance(last, ast.Return) and last.value else {}

    def _constant(self, node: ast.expr) -> Any:
        return node.value if isinstance(node, ast.Constant) else self.constants.get(ast.unparse(node))


def _torchvision(classes: Mapping[str, ast.ClassDef]) -> list[Entry]:
    spec = find_spec("torchvision")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else Path()
    family = _File(_parse(PACKAGE / "models" / "torchvision.py"), classes)
    fields = family.made(family.functions["_family"])
    builders = [
        node
        for path in folder.glob("*.py")
        for node in _parse(path).body
        if isinstance(node, ast.FunctionDef) and "register_model()" in map(ast.unparse, node.decorator_list)
    ]
    builders.sort(key=lambda builder: builder.name)
    return [Entry(builder.name, *cited(ast.get_docstring(builder) or ""), fields) for builder in builders]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _first(node: ast.expr, called: str) -> str | None:
    """The first argument, if `node` is a call of what is `called` so."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == called and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def _of_class(name: str, node: ast.ClassDef) -> Entry:
    """The first sentence of what a class says of itself, and the papers that it names."""
    text = " ".join((ast.get_docstring(node) or "").split())
    # Neither "et al." nor a file's ending ends a sentence.
    sentence = re.split(r"(?<!al)\.\s", text)[0].rstrip(".")
    return Entry(name, sentence, ", ".join(dict.fromkeys(PAPER.findall(text))))
