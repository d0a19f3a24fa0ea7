"""How a YAML file becomes a strict, typed configuration. Every package imports this file; it imports none of them.

    file.yaml --base:--> merged mapping --section.key=value--> overrides --${NAME}--> environment --pydantic--> sections

One file is one run. `base: other.yaml` (or a list of files) is merged underneath: mappings key by key, lists replaced,
`key: null` takes a base's key away. Because null removes a key, a setting for which None means something has None as its
default. Every fault of a file is reported at once, each with the setting, the value and what to do.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(Exception):
    """A fault that the user can mend: one sentence with the setting, the values and the remedy.

    Commands print it without a traceback: the trainer exits 93 (do not requeue), the tools exit 2.
    """


class ConfigError(UserError):
    """The configuration cannot be used as it is written."""


class Section(BaseModel):
    """Base of every configuration section: unknown keys are refused, values cannot be changed, docstrings become help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def problems(self) -> list[str]:
        """Sentences about fields that do not fit each other; empty when all is well."""
        return []


AnySection = TypeVar("AnySection", bound=Section)


def load(section: type[AnySection], path: str | Path, overrides: Sequence[str] = (), keep_unset: bool = False) -> AnySection:
    """Read `path` with its bases and `overrides` into `section`; raises ConfigError listing every fault at once."""
    return parse(section, load_mapping(path, overrides, keep_unset), source=str(path))


def parse(section: type[AnySection], mapping: Mapping[str, Any], source: str, at: str = "") -> AnySection:
    """Validate `mapping` as `section`. `source` and `at` (a dotted prefix) only serve the messages."""
    prefix = f"{at}." if at else ""
    try:
        config = section.model_validate(mapping)
    except ValidationError as error:
        faults = [f"{prefix}{_sentence(section, dict(fault))}" for fault in error.errors()]
    else:
        faults = [f"{prefix}{problem}" for problem in _problems(config)]
        if not faults:
            return config
    raise ConfigError(f"{source}: " + "\n  ".join(faults if len(faults) == 1 else [f"{len(faults)} faults", *faults]))


def load_mapping(path: str | Path, overrides: Sequence[str] = (), keep_unset: bool = False) -> dict[str, Any]:
    """The merged mapping of a file: bases, overrides, environment. With `keep_unset`, unset ${NAME}s stay as written."""
    mapping = merge_files(path, overrides)
    unset = sorted(_unset(mapping))
    if unset and not keep_unset:
        names = ", ".join(f"${{{name}}}" for name in unset)
        exports = " ".join(f"{name}=..." for name in unset)
        raise ConfigError(f"{path}: {names} not set in the environment; export {exports} first")
    expanded = _expand(mapping)
    assert isinstance(expanded, dict)
    return expanded


def merge_files(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged mapping of a file, bases and overrides, in which every ${NAME} stays as written."""
    mapping = _read_with_bases(Path(path), ())
    for override in overrides:
        _apply_override(mapping, override)
    return _without_nulls(mapping)


def differences(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """What a file and `overrides` set otherwise than the file's bases do, each as section.key=value; ${NAME}s as written.

    What an override sets comes first.
    """
    bases = _without_nulls(_bases_of(Path(path), ())[0])
    before, after = dict(_leaves(bases)), dict(_leaves(merge_files(path, overrides)))
    gone = [f"{name}=null" for name in before if name not in after]
    found = [f"{name}={value}" for name, value in after.items() if name not in before or before[name] != value] + gone
    given = tuple(override.partition("=")[0] for override in overrides)
    return sorted(found, key=lambda setting: not setting.startswith(given))


def unset_variables(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Names of environment variables that the file uses and that are not set."""
    return sorted(_unset(load_mapping(path, overrides, keep_unset=True)))


def to_yaml(section: Section) -> str:
    """The resolved configuration as YAML, defaults included; `load` reads it back to an equal section."""
    return mapping_to_yaml(section.model_dump(mode="json", exclude_none=True))


def mapping_to_yaml(mapping: Mapping[str, Any]) -> str:
    """A mapping as YAML, from which `load_mapping` reads the same values."""
    return str(yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the near ones if there are any, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known) or 'none'}"


# --- reading and merging ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, of which plain YAML would silently keep the last, and reads 2e-4."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor, whose keys may be written again
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                mark = key_node.start_mark
                raise ConfigError(
                    f"{mark.name}: key {key!r} stands twice in one mapping, again at line {mark.line + 1}; keep one"
                )
            keys.append(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which _Loader would take for a number."""


# YAML 1.1 takes 2e-4 and 1e9 for text, since they have no point; YAML 1.2, and everybody who writes them, for numbers.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf8") as file:
            mapping = yaml.load(file, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        holds = "nothing" if mapping is None else f"{type(mapping).__name__} {str(mapping)[:40]!r}"
        raise ConfigError(f"config file {path} holds {holds}, not a mapping of sections such as model: and data:")
    return mapping


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    return _merge(*_bases_of(path, above))


def _bases_of(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The merged bases of a file, and what it holds itself."""
    if path.resolve() in above:
        raise ConfigError(f"base: {path} names itself through {' -> '.join(map(str, above))}; break the circle")
    mapping = _read_yaml(path)
    bases = mapping.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"config file {path}: base: {bases!r} must be the path of a YAML file or a list of such paths")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, _read_with_bases(path.parent / base, (*above, path.resolve())))
    return merged, mapping


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All settings of a mapping with their dotted names; lists by index."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_mappings else value
    return merged


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = name.split(".")
    target: Any = mapping
    for key in parents:
        if isinstance(target, list):
            target = target[_list_index(target, key, override)]
        elif isinstance(target, dict):
            if not isinstance(target.get(key), dict | list):
                target[key] = {}
            target = target[key]
        else:
            raise ConfigError(f"override {override!r}: {key!r} is not inside a section or a list")
    if isinstance(target, list):
        target[_list_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"override {override!r}: {last!r} is not inside a section or a list")


def _list_index(items: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        known = f"use 0 to {len(items) - 1}" if items else "it has none"
        raise ConfigError(f"override {override!r}: {key!r} is not an index into a list of {len(items)}; {known}")
    return int(key)


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _unset(value: Any) -> set[str]:
    """Names of the environment variables in all texts of `value` that are not set."""
    if isinstance(value, str):
        return {name for name in _VARIABLE.findall(value) if name not in os.environ}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_unset, items))


def _expand(value: Any) -> Any:
    """`value` with the environment's values in all texts; what is not set stays as written."""
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value) if isinstance(value, str) else value


# --- messages ----------------------------------------------------------------------------------------------------------


def _sentence(section: type[Section], fault: dict[str, Any]) -> str:
    """One line for one pydantic error: where, what was found, what is expected."""
    path = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key; {nearest(str(fault['loc'][-1]), _fields_at(section, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{path}: missing; add it"
    value = repr(fault["input"])
    return f"{path}: {fault['msg'].removeprefix('Value error, ')}, got {value if len(value) < 80 else value[:77] + '...'}"


def _fields_at(section: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that an error's location points into."""
    model: type[BaseModel] | None = section
    for key in location:
        if isinstance(key, int) or model is None or key not in model.model_fields:
            continue
        model = _model_in(model.model_fields[key].annotation)
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _model_in(argument))), None)


def _problems(section: Section, prefix: str = "") -> list[str]:
    """The `problems()` of a section and of all sections inside it, each with its dotted path."""
    found = [f"{prefix}{problem}" for problem in section.problems()]
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        for key, item in [("", value), *inner]:
            if isinstance(item, Section):
                found += _problems(item, f"{prefix}{name}.{key}." if key != "" else f"{prefix}{name}.")
    return found
