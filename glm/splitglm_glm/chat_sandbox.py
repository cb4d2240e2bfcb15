"""Runs a chat template, which is a program that came with a model, inside bounds on work, memory and reach.

Jinja's immutable sandbox keeps a template from reaching Python. What it does not bound is effort: loops in loops, text
that doubles, lists that contain themselves many times over, a filter that pads to a gigabyte. Here every loop turn,
call, filter, comparison and joined piece is paid from a budget in proportion to the size of its operands, and whatever
could grow text or lists by multiplication is measured before it runs. Filters and string methods are an allow-list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from splitglm_glm import template_budget as metered
from splitglm_glm.template_budget import CURRENT, Budget, TemplateRefused

_STEPS_PER_CALL: Final = 8
# These take no longer for a long list than for a short one.
_CHEAP_FILTERS: Final = frozenset({"count", "d", "default", "first", "last", "length"})
_FILTERS: Final = frozenset(
    {"abs", "capitalize", "dictsort", "e", "escape", "float", "int", "items", "list", "lower", "map", "max", "min"}
    | {"reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "trim"}
    | {"unique", "upper"}
)
_STRING_METHODS: Final = frozenset(
    {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower"}
    | {"isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"}
    | {"replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"}
    | {"swapcase", "title", "upper"}
)


class ConversationRefused(TemplateError):
    """The template itself rejects the conversation (``raise_exception``)."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """What chat templates are written for (trimmed blocks, ``break``, ``raise_exception``, ``tojson``), bounded."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Constant folding would run filters while compiling, outside any budget.
            optimized=False,
            cache_size=0,
            finalize=_printed,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        self.concat = metered.join  # type: ignore[method-assign]
        filters = dict(self.filters)
        self.filters = {name: _charged(filters[name]) for name in _FILTERS}
        self.filters |= {name: filters[name] for name in _CHEAP_FILTERS}
        self.filters |= {"join": metered.joined, "replace": metered.replace, "indent": metered.indent}
        self.filters |= {"tojson": metered.tojson, "_each": metered.each, "_concat": metered.concat}
        self.filters |= {"_sized": metered.sized, "_sliced": metered.sliced}
        self.tests = {name: _charged(test) for name, test in dict(self.tests).items()}
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals["raise_exception"] = _raise_exception

    def compiled(self, source: str) -> Template:
        """``source`` with the meters in it."""
        tree: nodes.Template = _Meters().visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree)

    def run(self, template: Template, variables: Mapping[str, Any]) -> str:
        """Render ``template`` under a fresh budget."""
        token = CURRENT.set(Budget())
        try:
            return template.render(dict(variables))
        finally:
            CURRENT.reset(token)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = CURRENT.get()
        budget.spend(_STEPS_PER_CALL)
        budget.charge(args)
        budget.charge(kwargs)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name not in _STRING_METHODS:
                raise TemplateRefused(f"it calls the string method {name}")
            budget.charge(owner)
            if name == "replace":
                return metered.replace(owner, *args, **kwargs)
            if name == "join":
                return metered.joined(args[0] if args else (), owner)
        elif isinstance(owner, list | tuple | Mapping):
            budget.charge_length(owner)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        metered.check_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        # A width in the format string can ask for any number of characters.
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            raise TemplateRefused(f"it calls the string method {value.__name__}")
        return None


class _Meters(NodeTransformer):
    """Routes what can be repeated or grow through the metering filters."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _through("_each", node.iter)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _through("_sized", node.expr)
        for operand in node.ops:
            operand.expr = _through("_sized", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through("_sliced", node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_sized", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_sized", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_sized", node) if node.ctx == "load" else node


class _GenerationTag(Extension):
    """``{% generation %}``, which marks what to train on, means nothing here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _printed(value: Any) -> Any:
    # Text outside any tag comes through here too, while the template is compiled and nothing is being spent yet.
    budget = CURRENT.get(None)
    if budget is not None:
        budget.charge(value)
    return value


def _charged(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)  # which also keeps Jinja's mark for what it passes first
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = CURRENT.get()
        budget.charge(args)
        budget.charge(kwargs)
        return function(*args, **kwargs)

    return charged


def _raise_exception(message: object) -> NoReturn:
    raise ConversationRefused(str(message)[:300])
