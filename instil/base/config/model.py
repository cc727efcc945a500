"""Recipe sections as typed, immutable classes that mean the same from Python and from YAML."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from instil.base.config.choice import by_kind, kind_of
from instil.base.config.faults import explained


class Config(BaseModel):
    """Base of every recipe: immutable, no unknown keys, no silent conversion (1.5 to 1).

    Raises:
        InstilError: A value does not fit; one line per fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise explained(type(self), error) from error

    # pydantic calls an `__init__` without this mark for sections too, and loses where they are.
    __init__.__pydantic_base_init__ = True  # pyrefly: ignore[missing-attribute]

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, content: Any) -> Any:
        """Lists stand for tuples, and `optimizer.lr=1` keeps the rest of a default optimizer."""
        if not isinstance(content, Mapping):
            return content
        defaults = {
            name: field.default.model_dump(mode="json")
            for name, field in cls.model_fields.items()
            if name in content and isinstance(field.default, Config)
        }
        return {name: _tuples(value) for name, value in merge(defaults, content).items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again.

        Args:
            changes: New values by field, plain ones or sections such as this one.

        Raises:
            InstilError: A value does not fit.
        """
        return type(self)(**dict(self) | changes)


C = TypeVar("C", bound=Config)


class Choice(Config):
    """Base of what a recipe names by `kind`; see `OneOf`."""

    @model_serializer(mode="wrap")
    def _with_kind(
        self, write: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        if info.include is not None:
            return write(self)
        return {"kind": ""} | write(self) | {"kind": kind_of(type(self))}  # the kind comes first


def _tuples(value: Any) -> Any:
    """YAML has no tuples, and no recipe has lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; another `kind` starts from its own defaults."""
    merged = dict(base)
    for key, value in over.items():
        old = by_kind(merged.get(key)) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other_kind = value.get("kind", old.get("kind")) != old.get("kind")
            value = dict(value) if other_kind else merge(old, value)
        merged[key] = value
    return merged


def validate(model: type[C], content: Mapping[str, Any]) -> C:
    """Build a typed recipe from plain values.

    Raises:
        InstilError: One line per fault, each with its dotted key and, where one is near, the name
            that was probably meant.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise explained(model, error) from error
