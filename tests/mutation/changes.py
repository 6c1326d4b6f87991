"""Careless changes to the package: drawn from its syntax by a seed, and written down by hand."""

import ast
import itertools
import random
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).parents[2]
COMPARED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
COMBINED = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.And, ast.Or)
SWAPS = dict(zip(COMPARED, ("<=", "<", ">=", ">", "!=", "==", "is not", "is", "not in", "in"), strict=True))
SWAPS |= dict(zip(COMBINED, ("-", "+", "/", "*", "|", "&", "or", "and"), strict=True))
PAIRS = re.findall(
    r"\w+", "min max minimum maximum argmin argmax any all sum mean ceil floor zeros ones logical_and logical_or"
)
NAMES = dict(zip(["exp", "log", *PAIRS], ["expm1", "log1p", *(PAIRS[i ^ 1] for i in range(len(PAIRS)))], strict=True))


class Change(NamedTuple):
    """One change: ``old`` stands at ``start`` in ``path`` and becomes ``new``."""

    path: str
    start: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        assert text[self.start :].startswith(self.old), f"{self.path} no longer holds {self.old!r}"
        return text[: self.start] + self.new + text[self.start + len(self.old) :]

    @property
    def line(self) -> int:
        return (HOME / self.path).read_text(encoding="utf-8")[: self.start].count("\n") + 1

    def describe(self) -> str:
        old, new = [" ".join(part.split())[:70] or "nothing" for part in (self.old, self.new)]
        return f"{self.path}:{self.line}: {old} → {new}"


class _Finder(ast.NodeVisitor):
    """Every place of a file where one of the operators applies; texts, annotations and docstrings are left alone."""

    def __init__(self, path, text):
        self.path, self.text, self.changes, self.keys = path, text, [], []
        self.raw = text.splitlines(keepends=True)
        self.lines = [0, *itertools.accumulate(map(len, self.raw))]

    def at(self, line, column):
        return self.lines[line - 1] + len(self.raw[line - 1].encode()[:column].decode())

    def span(self, node):
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def add(self, start, end, new):
        self.changes.append(Change(self.path, start, self.text[start:end], new))

    def between(self, left, right, new):
        """Replaces the operator that stands between two expressions."""
        start, end = self.span(left)[1], self.span(right)[0]
        middle = self.text[start:end]
        core = middle.strip("() \n")
        if core and "#" not in middle:
            self.add(start + middle.index(core), start + middle.index(core) + len(core), new)

    def visit_FunctionDef(self, node):
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        own = [arg.arg for arg in [*node.args.args, *node.args.kwonlyargs]]
        own += [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
        self.keys.append(sorted({name for name in own if name.startswith("key")}))
        for statement in node.body:
            self.visit(statement)
        self.keys.pop()

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    # Texts are not looked into, nor messages: whether they are raised is up to the `if` around them.
    visit_JoinedStr = visit_Raise = lambda self, node: None

    def visit_If(self, node):
        if len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse:
            self.add(*self.span(node.test), "False")
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Call):
            self.add(*self.span(node), "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Compare(self, node):
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, SWAPS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if type(node.op) in SWAPS and not isinstance(node.left, ast.JoinedStr | ast.List | ast.Tuple):
            self.between(node.left, node.right, SWAPS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        self.between(node.values[0], node.values[1], SWAPS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(*self.span(node), self.text[slice(*self.span(node.operand))])
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.add(*self.span(node), str(not node.value))
        elif isinstance(node.value, int):
            self.add(*self.span(node), str(node.value + 1))
        elif isinstance(node.value, float):
            self.add(*self.span(node), repr(node.value * 2 or 1.0))

    def visit_Name(self, node):
        if self.keys and isinstance(node.ctx, ast.Load):
            for other in self.keys[-1]:
                if node.id in self.keys[-1] and other != node.id:
                    self.add(*self.span(node), other)

    def visit_Attribute(self, node):
        if node.attr in NAMES:
            end = self.span(node)[1]
            self.add(end - len(node.attr), end, NAMES[node.attr])
        self.generic_visit(node)


def found() -> list[Change]:
    """All changes that the operators can make to the package and that still compile."""
    changes = []
    for path in sorted((HOME / "baal_jax").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        finder = _Finder(path.relative_to(HOME).as_posix(), text)
        finder.visit(ast.parse(text))
        changes += finder.changes
    return sorted(set(changes))


def drawn(seed: int, count: int) -> list[Change]:
    """``count`` of them, no two in one line."""
    changes = found()
    random.Random(seed).shuffle(changes)
    return list({(change.path, change.line): change for change in changes[: 4 * count]}.values())[:count]


def written() -> list[Change]:
    """Those of ``careless.toml``, each of which a person could have made."""
    changes = []
    for entry in tomllib.loads((Path(__file__).parent / "careless.toml").read_text(encoding="utf-8"))["change"]:
        text = (HOME / entry["file"]).read_text(encoding="utf-8")
        assert text.count(entry["old"]) == 1, f"{entry['file']} holds {entry['old']!r} {text.count(entry['old'])} times"
        changes.append(Change(entry["file"], text.index(entry["old"]), entry["old"], entry["new"]))
    return changes
