"""What a recipe names by `kind`: a class of ours, or one of the user's own."""

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from instil.base.config import own
from instil.base.errors import InstilError

_OURS: set[type[BaseModel]] = set()  # the classes that have a short kind


def by_kind(value: Any) -> Any:
    """Let `divergence: sid` stand for `divergence: {kind: sid}`."""
    return {"kind": value} if isinstance(value, str) else value


def kind_of(model: type[BaseModel]) -> str:
    """The `kind` that names a class in a recipe."""
    if model in _OURS:
        return model.model_fields["kind"].default
    return own.name_of(model)


class OneOf:
    """Annotates a base class in a recipe: `Annotated[Divergence, OneOf(IKL, DMD)]`.

    A value is a mapping whose `kind` names one of the classes given here or
    `package.module:Class`, a subclass of the base that the user has written; the kind alone; or an
    instance.

    Args:
        members: Subclasses of the base, each with a field `kind: Literal[…] = …`.
    """

    def __init__(self, *members: type[BaseModel]) -> None:
        self.kinds = {member.model_fields["kind"].default: member for member in members}
        _OURS.update(members)

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, ours: core_schema.ValidatorFunctionWrapHandler) -> Any:
            value = by_kind(value)
            if isinstance(value, base):
                return value
            kind = str(value.get("kind")) if isinstance(value, Mapping) else ""
            return _own(kind, value, base) if ":" in kind else ours(value)

        members: Any = functools.reduce(operator.or_, self.kinds.values())
        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(Annotated[members, Field(discriminator="kind")]),
            serialization=core_schema.simple_ser_schema("any"),  # each class writes itself
        )


def _own(kind: str, content: Mapping[str, Any], base: type[BaseModel]) -> BaseModel:
    """An instance of the user's class."""
    model = own.load(kind)
    if not isinstance(model, type) or not issubclass(model, base):
        raise InstilError(f"{kind}: expected a subclass of {base.__module__}.{base.__name__}")
    if missing := sorted(getattr(model, "__abstractmethods__", ())):
        raise InstilError(f"{kind}: does not define {', '.join(missing)}")
    try:
        return model.model_validate({k: v for k, v in content.items() if k != "kind"})
    except ValidationError as error:
        raise ValidationError.from_exception_data(  # the kind in the place, as unions have it
            error.title, [_under(kind, fault) for fault in error.errors()]
        ) from error


def _under(kind: str, fault: Any) -> InitErrorDetails:
    details = {key: fault[key] for key in ("type", "input", "ctx") if key in fault}
    return InitErrorDetails(loc=(kind, *fault["loc"]), **details)


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All fields of a recipe by dotted key, those of every kind included."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in sections(field.rebuild_annotation()).values():
            yield from fields_of(section, f"{prefix}{name}.")


def sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes that a field may hold, by kind; a class without a kind is under ""."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"": annotation}
    if get_origin(annotation) is Annotated:
        for each in get_args(annotation)[1:]:
            if isinstance(each, OneOf):
                return each.kinds
        return sections(get_args(annotation)[0])
    return {k: v for part in get_args(annotation) for k, v in sections(part).items()}
