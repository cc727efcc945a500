"""The name of a pretrained model: what it says of repository, revision, variant and folder."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from instil.base.config import Config
from instil.base.config.fields import Location
from instil.base.errors import InstilError
from instil.base.untrusted import exists

HUB_ID = r"[\w.-]+/[\w.-]+"


class Source(Config):
    """The location of a model; `str` of it is the shorthand of recipes and command lines.

    Attributes:
        source: A folder, a hub id, or an embedded name.
        revision: Branch, tag or commit of a hub id; None for its main branch.
        variant: The word in the names of the files of weights, such as fp16; None for the best of
            those that are there.
        subfolder: The folder of the model inside the source.
    """

    source: str
    revision: str | None = None
    variant: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        options = {"variant": self.variant, "subfolder": self.subfolder}
        words = [f"{key}={value}" for key, value in options.items() if value]
        return f"{self.source}{revision}{'?' if words else ''}{'&'.join(words)}"

    @property
    def arguments(self) -> str:
        """The arguments of diffusers' `from_pretrained` that name the same pipeline, as code."""
        options = {"revision": self.revision, "variant": self.variant}
        words = [f'{key}="{value}"' for key, value in options.items() if value]
        inside = f"/{self.subfolder}" if self.subfolder else ""
        return ", ".join([f'"{self.source}{inside}"', *words])

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read `SOURCE`, `ID@REVISION`, `SOURCE?variant=fp16&subfolder=DIR` or both together.

        Raises:
            InstilError: There are other options than these two.
        """
        if exists(text):
            return cls(source=text)
        text = text.removeprefix("https://huggingface.co/").removeprefix("hf://")
        place, _, query = text.partition("?")
        options = {
            word.partition("=")[0]: word.partition("=")[2] for word in query.split("&") if word
        }
        if unknown := options.keys() - {"variant", "subfolder"}:
            raise InstilError(
                f"{text}: {min(unknown)} is not known; expected variant=… or subfolder=…"
            )
        name, _, revision = place.partition("@")
        if exists(place) or not re.fullmatch(HUB_ID, name):
            name, revision = place, ""
        return cls(source=name, revision=revision or None, **options)


def _shorthand(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    # Recipes below give a name, which a mapping over it makes a `kind`.
    options: dict[str, Any] = {"source": value.get("kind"), **value}
    return str(Source(**{key: options[key] for key in options if key != "kind"}))


# The shorthand of a source; a mapping of its attributes is written as one.
Named = Annotated[Location, BeforeValidator(_shorthand)]
