"""Frozen dataclasses <-> plain JSON objects, typed and closed.

A saved configuration is read back into exactly the classes that the code declares: no class is looked up by an arbitrary
name, no code runs, an unknown key or a value of another type is refused with one line that says where it stands.

In JSON a member of a union of dataclasses carries its class name under "kind". A missing "kind" means the first
member, so that a field can become a union later and the files written before stay readable.
"""
import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union

from .errors import UserError, nearest

T = TypeVar("T")


def to_json(value: Any, hint: Any = None) -> Any:
    """The JSON form (dict, list, str, int, float, bool, None) of a dataclass instance or of a value inside one.

    `hint` is the declared type of the value: members of a union of dataclasses get the "kind" tag.
    """
    if dataclasses.is_dataclass(value):
        hints = field_types(type(value))
        fields = {name: to_json(getattr(value, name), hint) for name, hint in hints.items()}
        if len(dataclass_members(hint)) > 1:
            assert "kind" not in fields, f"{type(value).__name__} stands in a union: it cannot have a field named 'kind'"
            return {"kind": type(value).__name__, **fields}
        return fields
    if isinstance(value, tuple | list):
        return [to_json(item, hint) for item, hint in zip(value, item_types(hint, len(value)), strict=True)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}: {value!r}")


def from_json(hint: type[T], value: Any, where: str = "") -> T:
    """The value of type `hint` (a dataclass, usually) whose JSON form is `value`.

    `where` is the path of the value in the file, for the errors. Raises UserError at an unknown or missing key and at a
    value of another type.
    """
    if members(hint) != (hint,):
        return _union_from_json(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return _dataclass_from_json(hint, value, where)
    if typing.get_origin(hint) is Literal:
        return _literal_from_json(hint, value, where)
    if typing.get_origin(hint) is tuple or hint is tuple:
        return _tuple_from_json(hint, value, where)
    return _scalar_from_json(hint, value, where)


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> declared type of a dataclass, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself where it is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def dataclass_members(hint: Any) -> dict[str, type]:
    """Class name -> class, of the dataclasses that a declared type admits."""
    return {member.__name__: member for member in members(hint) if dataclasses.is_dataclass(member)}


def literals(hint: Any) -> list[str]:
    """The values that a declared type names one by one, as texts."""
    return [str(v) for member in members(hint) if typing.get_origin(member) is Literal for v in typing.get_args(member)]


def item_types(hint: Any, count: int) -> list[Any]:
    """The declared types of the `count` items of a tuple; [None, ...] where nothing is declared."""
    for member in members(hint):
        args = typing.get_args(member)
        if typing.get_origin(member) is tuple and args:
            if args[-1] is Ellipsis:
                return [args[0]] * count
            if len(args) == count:
                return list(args)
    return [None] * count


def describe(hint: Any) -> str:
    """A declared type in words, for error messages."""
    words = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if hint in words:
        return words[hint]
    if members(hint) != (hint,):
        return " or ".join(describe(member) for member in members(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        return f"a list (of {describe(args[0])} each)" if args[-1] is Ellipsis else f"a list of {len(args)} values"
    return getattr(hint, "__name__", str(hint))


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _dataclass_from_json(cls: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise UserError(f"{_at(where)}expected the fields of {cls.__name__}, found {value!r}")
    hints = field_types(cls)
    for key in value:
        if key not in hints:
            raise UserError(f"{_at(where)}{cls.__name__} has no field {key!r}.{nearest(key, hints)}")
    required = [f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in value]
    if missing:
        raise UserError(f"{_at(where)}{cls.__name__} needs {', '.join(missing)}")
    prefix = f"{where}." if where else ""
    fields = {key: from_json(hints[key], item, prefix + key) for key, item in value.items()}
    try:
        return cls(**fields)
    except (ValueError, UserError) as error:  # a check in __post_init__
        raise UserError(f"{_at(where)}{error}") from error


def _union_from_json(hint: Any, value: Any, where: str) -> Any:
    classes = dataclass_members(hint)
    if isinstance(value, dict) and classes:
        if len(classes) == 1:
            return _dataclass_from_json(next(iter(classes.values())), value, where)
        kind = value.get("kind", next(iter(classes)))
        if kind not in classes:
            raise UserError(f"{_at(where)}unknown kind {kind!r}, expected one of {', '.join(classes)}.{nearest(kind, classes)}")
        return _dataclass_from_json(classes[kind], {k: v for k, v in value.items() if k != "kind"}, where)
    for member in members(hint):
        try:
            return from_json(member, value, where)
        except UserError:
            continue
    raise UserError(f"{_at(where)}expected {describe(hint)}, found {value!r}")


def _literal_from_json(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise UserError(f"{_at(where)}expected {describe(hint)}, found {value!r}.{nearest(value, choices)}")


def _tuple_from_json(hint: Any, value: Any, where: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise UserError(f"{_at(where)}expected {describe(hint)}, found {value!r}")
    args = typing.get_args(hint)
    if args and args[-1] is not Ellipsis and len(args) != len(value):
        raise UserError(f"{_at(where)}expected {len(args)} values, found {len(value)}: {value!r}")
    hints = item_types(hint, len(value))
    return tuple(from_json(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(hints, value, strict=True)))


def _scalar_from_json(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (bool, int, str, type(None)) and type(value) is hint:
        return value
    if hint is None or hint is Any:
        return value
    raise UserError(f"{_at(where)}expected {describe(hint)}, found {value!r}")


def changed(config: Any) -> dict[str, Any]:
    """Names and values of the fields that differ from their defaults, nested like the configuration."""
    found: dict[str, Any] = {"kind": type(config).__name__}
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(config, field.name)
        if value != default:
            found[field.name] = changed(value) if dataclasses.is_dataclass(value) else value
    return found
