"""Reads recipe YAML with line numbers kept, and turns validation faults into messages.

The position of every key is remembered while the document is composed, so a fault found later by
the typed recipe can say where it is.
"""

import copy
import difflib
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sdcompress.errors import InputError, RecipeError

KeyPath = tuple[str | int, ...]


class FaultyKeyError(ValueError):
    """A combination that cannot be, found by a validator and blamed on one key below it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.path: KeyPath = tuple(key.split("."))


class Section(BaseModel):
    """A part of the recipe: immutable, and unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, options: Mapping[str, object], refusal: str) -> Self:
        """Makes it of options that stand in no file. Raises InputError beginning with `refusal`."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            faults = [f"{_dotted(_blamed(one))}: {_message(one)}" for one in error.errors()]
            raise InputError(f"{refusal}: {'; '.join(faults)}") from None


@dataclass(frozen=True)
class Layers:
    """A recipe's raw data, and for each key path where it was written."""

    file: Path
    data: dict[str, Any]
    origins: dict[KeyPath, str]

    def where(self, path: KeyPath) -> str:
        """Returns the origin of a key, or of the nearest parent that was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return str(self.file)


def read_layers(file: Path, overrides: tuple[str, ...]) -> Layers:
    """Reads the file and applies the ``key.path=value`` overrides. Raises RecipeError."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(_missing_file(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(_syntax_fault(file, error)) from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise RecipeError(f"{file}: expected a mapping of recipe keys, found {_kind(data)}")
    origins: dict[KeyPath, str] = {(): f"{file}:1"}
    try:
        _index(file, node, (), origins)
    except RecursionError:
        raise RecipeError(f"{file}: an alias (*name) refers to what contains it") from None
    return apply_overrides(Layers(file, data, origins), overrides)


def apply_overrides(layers: Layers, overrides: tuple[str, ...]) -> Layers:
    """Applies ``key.path=value`` strings in order. Raises RecipeError for malformed ones."""
    copied = Layers(layers.file, copy.deepcopy(layers.data), dict(layers.origins))
    for override in overrides:
        _apply(copied, override)
    return copied


@contextmanager
def report_faults(layers: Layers, model: type[BaseModel]) -> Iterator[None]:
    """Turns a pydantic ValidationError raised inside into a RecipeError listing every fault."""
    try:
        yield
    except ValidationError as error:
        faults = sorted({_describe(layers, model, fault) for fault in error.errors()})
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(f"{layers.file}: {count} in the recipe\n" + "\n".join(faults)) from None


def _missing_file(file: Path) -> str:
    folder = file.parent
    candidates = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    nearest = difflib.get_close_matches(file.name, candidates, n=1)
    hint = f"did you mean {folder / nearest[0]}?" if nearest else "`sdcompress recipes` lists some"
    return f"{file}: no such recipe; {hint}"


def _syntax_fault(file: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
    problem = getattr(error, "problem", None) or str(error)
    return f"{where}: not valid YAML: {problem}"


def _index(file: Path, node: yaml.Node, path: KeyPath, origins: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            origins[(*path, position)] = f"{file}:{item.start_mark.line + 1}"
            _index(file, item, (*path, position), origins)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        here = (*path, str(key_node.value))
        line = f"{file}:{key_node.start_mark.line + 1}"
        if here in origins:
            raise RecipeError(f"{line}: {_dotted(here)} is written twice, first at {origins[here]}")
        origins[here] = line
        _index(file, value_node, here, origins)


def _apply(layers: Layers, override: str) -> None:
    label = f"--set {override}"
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise RecipeError(f"{label}: expected key.path=value, for example evaluate.prompts=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(_syntax_fault(Path(label), error)) from None
    section: Any = layers.data
    for depth, part in enumerate(parts[:-1], start=1):
        section = section.setdefault(part, {})
        layers.origins.setdefault(tuple(parts[:depth]), label)
        if not isinstance(section, dict):
            raise RecipeError(f"{label}: '{part}' is not a section of the recipe")
    section[parts[-1]] = value
    for known in [p for p in layers.origins if p[: len(parts)] == tuple(parts)]:
        del layers.origins[known]
    layers.origins[tuple(parts)] = label


def _describe(layers: Layers, model: type[BaseModel], fault: Any) -> str:
    path = _written_path(layers.data, _blamed(fault))
    where, key = layers.where(path), _dotted(path)
    subject = f"  {where}: {key}: " if key else f"  {where}: "
    if fault["type"] == "extra_forbidden":
        return subject + _unknown_key(layers, model, path)
    if fault["type"] == "missing":
        return subject + "required, but missing"
    if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return subject + _unknown_method(fault)
    message = _message(fault)
    found = fault["input"]
    if fault["type"] == "literal_error" and isinstance(found, str):
        message += _nearest(found, fault["ctx"]["expected"])
    if isinstance(found, dict | BaseModel):
        return subject + message
    return f"{subject}{message}, found {found!r} ({_kind(found)})"


def _blamed(fault: Any) -> KeyPath:
    """The path of the key that one of pydantic's faults is about."""
    cause = fault.get("ctx", {}).get("error")
    below = cause.path if isinstance(cause, FaultyKeyError) else ()
    return (*fault["loc"], *below)


def _message(fault: Any) -> str:
    return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")


def _unknown_method(fault: Any) -> str:
    expected = fault["ctx"].get("expected_tags") or "'fp16', 'int8_weights', 'hybrid', 'int8', ..."
    given = fault["ctx"].get("tag")
    if given is None:
        return "expected a mapping with a `method`, for example {method: int8_weights}"
    return f"unknown method '{given}', expected one of {expected}{_nearest(str(given), expected)}"


def _nearest(given: str, expected: str) -> str:
    """Names the closest of pydantic's quoted values, if one is close."""
    nearest = difflib.get_close_matches(given, re.findall(r"'([^']*)'", expected), n=1)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def _unknown_key(layers: Layers, model: type[BaseModel], path: KeyPath) -> str:
    section = _section_at(model, layers.data, path[:-1])
    names = [f.alias or name for name, f in section.model_fields.items()] if section else []
    nearest = difflib.get_close_matches(str(path[-1]), names, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return f"unknown key, expected one of: {', '.join(names)}{hint}"


def _written_path(data: Any, loc: KeyPath) -> KeyPath:
    """Drops the union tags that pydantic puts between the keys that were written."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(data, dict) and part not in data and part == data.get("method"):
            continue
        path.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(path)


def _section_at(model: type[BaseModel], data: Any, path: KeyPath) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in path:
        field = current.model_fields.get(str(part)) if current else None
        data = data.get(part) if isinstance(data, dict) else None
        current = _choose(_models_in(field.annotation), data) if field else None
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is Annotated:
        return _models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for option in get_args(annotation) for model in _models_in(option)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []


def _choose(models: list[type[BaseModel]], data: Any) -> type[BaseModel] | None:
    if len(models) == 1:
        return models[0]
    wanted = data.get("method") if isinstance(data, dict) else None
    for model in models:
        annotation = model.model_fields["method"].annotation
        if get_origin(annotation) is Literal and wanted in get_args(annotation):
            return model
    return None


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
