"""What groups of settings are made of: secrets that don't show, and what goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, SecretStr, SerializationInfo

from workers.errors import UserError


def _shown(secret: SecretStr, info: SerializationInfo) -> str:
    return secret.get_secret_value() if info.context == REVEAL_SECRETS else str(secret)


REVEAL_SECRETS = {"reveal": "secrets"}
# Shown as asterisks, whoever prints or dumps the settings; `Settings.environment` alone tells it.
Secret = Annotated[SecretStr, PlainSerializer(_shown, when_used="json")]


class Group(BaseModel):
    """Settings that belong together; a misspelt name is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def check_pair(cert_file: Path | None, key_file: Path | None) -> None:
    """Raise ValueError if one of the two is missing."""
    if (cert_file is None) != (key_file is None):
        raise ValueError("cert_file and key_file go together")


def check_one_password(password: SecretStr | None, password_file: Path | None) -> None:
    """Raise ValueError if both are given."""
    if password is not None and password_file is not None:
        raise ValueError("give password or password_file, not both")


def read_password(password: SecretStr | None, password_file: Path | None, name: str) -> str | None:
    """The password, from wherever it was given. Raises UserError if its file, the setting `name`, can't be read."""
    if password is not None:
        return password.get_secret_value()
    if password_file is None:
        return None
    try:
        # Editors end a file with a line feed that is no part of the password.
        return password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{name} names {password_file}, which can't be read: {type(problem).__name__}") from None
