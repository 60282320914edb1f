"""YAML as kubectl reads it, so that a manifest means here what it will mean there.

PyYAML and kubectl's Go library take different plain words for numbers, truth values and dates: `y` and `1e3` are
words to the one, `true` and 1000 to the other; `12:30` and `2026-01-31` are a number and a date to the one and words
to the other. Only what words without quotes stand for differs: structure is read by PyYAML.
"""

import re

import yaml


class KubectlLoader(yaml.SafeLoader):
    """Takes the words for numbers, truth values and nothing that kubectl does."""

    # Those of the base class are not wanted; ``add_implicit_resolver`` fills this one.
    yaml_implicit_resolvers = {}


_WORDS = {
    "bool": (r"(?:[yY]|[nN]|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)", "yYnNtTfFoO"),
    "int": (
        r"[-+]?(?:0[xX]_*[0-9a-fA-F][0-9a-fA-F_]*|0[bB]_*[01][01_]*|0[oO]_*[0-7][0-7_]*|0[0-7_]*|[1-9][0-9_]*)",
        "-+0123456789",
    ),
    "float": (
        r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+.0123456789",
    ),
    "null": (r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}
for _tag, (_pattern, _first) in _WORDS.items():
    # The first that fits counts, so whole numbers come before those with a fraction.
    KubectlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), list(_first))


def _truth(loader: KubectlLoader, node: yaml.ScalarNode) -> bool:
    return node.value[0] in "yYtT" or node.value.lower() == "on"


def _whole(loader: KubectlLoader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    # Go takes a leading zero for base 8, Python's base 0 only 0o.
    return int(text, 8) if re.fullmatch(r"[-+]?0[0-7]+", text) else int(text, 0)


def _number(loader: KubectlLoader, node: yaml.ScalarNode) -> int | float:
    value = float(loader.construct_yaml_float(node))
    # On its way to the API server, a number without a fraction is a whole number.
    return int(value) if value.is_integer() else value


KubectlLoader.add_constructor("tag:yaml.org,2002:bool", _truth)
KubectlLoader.add_constructor("tag:yaml.org,2002:int", _whole)
KubectlLoader.add_constructor("tag:yaml.org,2002:float", _number)
