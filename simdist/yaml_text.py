"""YAML without surprises, read and written by the same rules.

PyYAML follows YAML 1.1, where ``1e-3`` is a text, ``no`` is false, ``010`` is eight and ``1:30`` is ninety. Here
plain words become null, booleans and numbers as in the YAML 1.2 core schema; everything else is text. Tags are
refused, since a scenario is data; so are keys that are given twice.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from simdist.errors import InputError

_SCALARS = [
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
]


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, value in enumerate(keys):
            if value in keys[:i]:
                mark = node.value[i][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {value!r} is given twice", mark)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))

    def construct_yaml_float(self, node: Any) -> float:
        text = str(self.construct_scalar(node))
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    # keeps YAML 1.1's rules beside ours: a text that either would misread is quoted

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds Unicode's line breaks into spaces in every style but this one
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Loader.yaml_implicit_resolvers = {}  # forgets YAML 1.1's
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse(text: str, where: str) -> Any:
    """Return the data of a YAML text; ``where`` names it in messages.

    Raises:
        InputError: for a text that is not YAML, holds a tag, or gives a key twice.

    >>> parse("{lr: 1e-3, name: no, at: 10:30}", "a test")
    {'lr': 0.001, 'name': 'no', 'at': '10:30'}
    """
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.TagToken):
                handle, suffix = token.value
                tag = {None: "!", "!": "!", "!!": "!!"}.get(handle, str(handle)) + suffix
                raise InputError(
                    f"{where}, line {token.start_mark.line + 1}: got the YAML tag {tag!r}; expected plain data "
                    f"(texts, numbers, lists, sections): remove the tag"
                )
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{where}{line}: got text that is not valid YAML ({problem}); expected 'key: value'") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: got text that is not valid YAML ({error}); expected 'key: value'") from None


def dump(data: Any) -> str:
    """Write plain data as YAML that :func:`parse` reads back exactly, keys in the given order.

    >>> parse(dump({"name": "1e5", "lr": 1e-05}), "a test")
    {'name': '1e5', 'lr': 1e-05}
    """
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text
