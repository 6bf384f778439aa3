"""The reference of all settings, written from the settings themselves."""

from typing import Any

from calibration.config import Experiment

HEAD = """# Settings of an experiment

Written by `slm-calibration settings`; do not edit. A setting in a table of its own is a TOML table, such as
`[methods.dpo.lora]`. Where several kinds can stand, `kind` chooses.
"""


def experiment_reference() -> str:
    """Every setting with its type, default and description, as markdown."""
    schema = Experiment.model_json_schema()
    parts = {"Experiment": schema, **schema["$defs"]}
    order = _reachable(parts)
    return "\n".join([HEAD, *(_section(name, parts[name]) for name in order)])


def _reachable(parts: dict[str, Any]) -> list[str]:
    """The schemas in the order in which a reader meets them."""
    order = ["Experiment"]
    for name in order:
        for field in parts[name].get("properties", {}).values():
            order.extend(found for found in _references(field) if found not in order)
    return order


def _references(field: Any) -> list[str]:  # noqa: ANN401 - a piece of JSON
    if isinstance(field, dict):
        own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
        inner = [
            found for key, value in field.items() if key != "discriminator" for found in _references(value)
        ]
        return own + inner
    return [found for item in field for found in _references(item)] if isinstance(field, list) else []


def _section(name: str, schema: dict[str, Any]) -> str:
    rows = [
        _row(key, field, key in schema.get("required", [])) for key, field in schema["properties"].items()
    ]
    head = "| setting | type | default | meaning |\n|---|---|---|---|"
    intro = schema.get("description", "").split("\n\n")[0].replace("\n", " ")
    return f"## {name}\n\n{intro}\n\n{head}\n" + "\n".join(rows) + "\n"


def _row(key: str, field: dict[str, Any], is_required: bool) -> str:  # noqa: FBT001 - a row of four cells
    default = "required" if is_required else f"`{field.get('default', '(its own defaults)')}`"
    meaning = field.get("description", "").replace("\n", " ").replace("|", "\\|")
    return f"| `{key}` | {_type(field)} | {default} | {meaning} |"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return ", ".join(f'"{value}"' for value in field["enum"])
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_type(choice) for choice in field[union])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    if field.get("type") == "object":
        inner = [field["additionalProperties"]] if "additionalProperties" in field else []
        return f"tables, each a {_type(next(iter([*inner, *field.get('patternProperties', {}).values()])))}"
    return "unset" if field.get("type") == "null" else str(field.get("type", "any")) + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f" {', '.join(found)}" if found else ""
