"""YAML as a person reads it: whatever YAML 1.1 would silently turn into something else is refused.

That is 010 (which YAML reads as 8), 1:30 (as 90), 0x10, yes (as true, and so as 1), and a duplicate
key. `1e-3`, which is text in YAML 1.1, is read as the number.
"""

import re
from typing import Any

import yaml

from iekd.errors import ConfigError

INTEGER = re.compile(r"[-+]?(0|[1-9]\d*(_\d+)*)", re.ASCII)
FLOAT = re.compile(rf"({INTEGER.pattern}(\.\d*)?|[-+]?\.\d+)([eE][-+]?\d+)?", re.ASCII)
LEADING_ZERO = re.compile(r"([-+]?)0+_?(\d[\d_]*(\.\d*)?([eE][-+]?\d+)?)", re.ASCII)
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read(text: str) -> Any:
    """The content of a YAML text.

    Raises a `ConfigError` that names the line for what is easily misread, `yaml.YAMLError` or
    `ValueError` for what is not YAML.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Keys are text and unique. Every mapping is composed once, so the check sees them all."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    before = f"line {first[key.value]} already has it; keep one"
                    raise ConfigError(f"line {_line(key)}: {key.value} appears twice, {before}")
                first[key.value] = _line(key)
                if key.tag != MERGE:
                    key.tag, key.style = TEXT, '"'  # `on:` is the key on, not True
        return node


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = node.value
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    value = getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)
    if text.lstrip("+-").lower() in (".inf", ".nan"):
        return value
    raise _misread(node, value)


def _truth(loader: _Loader, node: yaml.ScalarNode) -> bool:
    raise ConfigError(
        f"line {_line(node)}: YAML takes {node.value} for true or false, which no parameter is; "
        f"write a number, or '{node.value}' if it is text"
    )


def _text(loader: _Loader, node: yaml.ScalarNode) -> str | float:
    plain = node.style is None  # without quotes
    if plain and FLOAT.fullmatch(node.value):
        return float(node.value)
    if plain and LEADING_ZERO.fullmatch(node.value):  # 08 is text in YAML, 07 is a number
        raise _misread(node, f"the text '{node.value}'")
    return str(node.value)


def _misread(node: yaml.ScalarNode, value: Any) -> ConfigError:
    zero = LEADING_ZERO.fullmatch(node.value)
    meant = "".join(zero.groups()[:2]) if zero else value
    return ConfigError(
        f"line {_line(node)}: YAML takes {node.value} for {value}; write {meant}, "
        f"or '{node.value}' if it is text"
    )


for _tag, _construct in {"int": _number, "float": _number, "bool": _truth, "str": _text}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
