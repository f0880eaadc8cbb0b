"""Types and base models that the models of a campaign are made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from typing_extensions import Self

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _name(value: str) -> str:
    # Names become file and folder names of the run directory: no separators, no leading dot, no line breaks.
    if not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits, '_', '-' and '.', and starts with a letter or digit")
    return value


def as_list(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], BeforeValidator(as_list)]
Datasets = Annotated[tuple[Name, ...], BeforeValidator(as_list), Field(min_length=1)]
Files = Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]


class FrozenModel(BaseModel):
    """A value: it cannot be changed, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class OpenModel(BaseModel):
    """A value with options beside its own keys. What ``kind`` or ``use`` names checks them."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    options: dict[str, Any] = Field(default_factory=dict, description="options of the implementation that is named")

    @model_validator(mode="after")
    def _once(self) -> Self:
        twice = sorted(set(self.options) & set(self.inline))
        if twice:
            raise ValueError(f"'{twice[0]}' stands twice, beside 'options' and in it")
        return self

    @property
    def inline(self) -> dict[str, Any]:
        """Options that stand beside the model's own keys."""
        return dict(self.model_extra or {})

    @property
    def given(self) -> dict[str, Any]:
        """All options, whether under ``options`` or inline."""
        return {**self.options, **self.inline}
