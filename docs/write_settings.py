"""Writes docs/settings.md from workers/settings.py and what it is made of: `make docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from workers.setting_types import Group, Secret
from workers.settings import MIB, Settings

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Which settings are there, and how do I change one?

<!-- Written by `make docs` from workers/settings.py. Change it there. -->

Every setting has a default. Change it in one of two ways; the environment wins:

1. **Environment**: `MRISTREAM_<GROUP>__<SETTING>`, with two underscores between.

       export MRISTREAM_KAFKA__BOOTSTRAP_SERVERS=kafka-1:9092,kafka-2:9092
       export MRISTREAM_STORE__URI='s3://masks/brain'

2. **A YAML file** that the variable `MRISTREAM_CONFIG` names:

       kafka:
         bootstrap_servers: kafka-1:9092,kafka-2:9092
         security_protocol: SSL
         ca_file: /etc/mristream/ca.pem
       store:
         uri: s3://masks/brain

A setting that its group doesn't have, or a value outside its bounds, ends the command with a sentence that names it.
Times end in `_s` (seconds), sizes contain `bytes`, files are named by their path, and secret texts are shown as
asterisks ([security.md](security.md)). `mristream doctor` tries what the settings name: Kafka, Triton and
the store.
"""
BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))
KINDS: dict[Any, str] = {
    int: "whole number",
    int | None: "whole number",
    float: "number",
    str: "text",
    str | None: "text",
    Path | None: "file",
    Secret | None: "secret text",
    bool: "`true`, `false`",
    tuple[str, ...]: "list of texts",
    dict[str, Secret]: "names and secret texts",
}


def settings_page() -> str:
    """The whole page as Markdown."""
    return INTRODUCTION + "".join(_section(name, field) for name, field in Settings.model_fields.items())


def _section(name: str, field: FieldInfo) -> str:
    group = field.default
    if not isinstance(group, Group):
        raise TypeError(f"the setting {name} is in no group")
    rows = "".join(_row(f"{name}.{setting}", field) for setting, field in type(group).model_fields.items())
    return (
        f"\n## {name}\n\n{type(group).__doc__}\n\n| setting | default | values | meaning |\n|---|---|---|---|\n{rows}"
    )


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_default(field.default)} | {_values(field)} | {field.description or ''} |\n"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    shown = f"`{value if isinstance(value, str) else json.dumps(value)}`"
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        shown += f" ({value // MIB} MiB)"
    return shown


def _values(field: FieldInfo) -> str:
    # The one kind, or the first of two where the other is "none".
    for kind in (field.annotation, *get_args(field.annotation)[:1]):
        if get_origin(kind) is Literal:
            return ", ".join(f"`{choice}`" for choice in get_args(kind))
    bounds = (
        f"{sign} {getattr(bound, attribute)}"
        for bound in field.metadata
        for kind, attribute, sign in BOUNDS
        if isinstance(bound, kind)
    )
    return f"{KINDS[field.annotation]} {', '.join(bounds)}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
