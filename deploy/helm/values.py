"""Makes the schema and the README's table from values.yaml. `python -m deploy.helm.values` writes both.

A value's description is the `# --` comment above it; its type is its default's, and what a default can't show is in
`DETAILS`. Below `config` and `webhooks.files` is the dispatcher's own schema: a misspelt setting or a wrong
webhook fails in `helm template`.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dispatcher.config.schemas import SchemaKind, schema_of

CHART = Path(__file__).parent / "feedback-dispatcher"

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")
_TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- /values -->)", re.DOTALL)

FREE = {
    "strategy", "podSecurityContext", "securityContext", "resources", "autoscaling.behavior", "dashboards.labels",
    "console.resources", "history.resources", "hooks.resources",
    "probes.startup", "probes.liveness", "probes.readiness",
}  # fmt: skip
"""Mappings that are Kubernetes' own, beside those that are empty by default: they can hold anything."""

_NAMES = {"type": "array", "items": {"type": "string", "minLength": 1}}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_PORTS = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_DNS_LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$"}
_OBJECT_NAME = {"pattern": r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?)?$"}
_NAMESPACE = {"pattern": "^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$"}
_REGISTRY = {"pattern": r"^([^\s/]+(/[^\s/]+)*)?$"}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_PROBE = {
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 0 if name == "initialDelaySeconds" else 1}
        for name in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
    },
}
_COUNT_OR_SHARE = {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}


def _where_enabled(name: str) -> dict[str, Any]:
    return {
        "if": {"properties": {"enabled": {"const": True}}, "required": ["enabled"]},
        "then": {"properties": {name: {"minItems": 1}}},
    }


DETAILS: dict[str, dict[str, Any]] = {
    "global": {"additionalProperties": True},
    "global.imageRegistry": _REGISTRY,
    "global.imagePullSecrets": {"items": {"type": ["string", "object"]}},
    "imagePullSecrets": {"items": {"type": ["string", "object"]}},
    "nameOverride": {"pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"},  # a label's value
    "namespaceOverride": _NAMESPACE,
    "dashboards.namespace": _NAMESPACE,
    "topics.strimzi.namespace": _NAMESPACE,
    "serviceAccount.name": _OBJECT_NAME,
    "persistence.accessModes": {
        "items": {"enum": ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]},
        "minItems": 1,
    },
    "persistence.mountPath": {"pattern": "^/"},
    "dnsPolicy": {"enum": ["", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
    "hostAliases": _OBJECTS,
    "console.ingress.path": {"pattern": "^/"},
    "console.ingress.pathType": {"enum": ["Prefix", "Exact", "ImplementationSpecific"]},
    "console.podDisruptionBudget.maxUnavailable": {"oneOf": [*_COUNT_OR_SHARE["oneOf"], {"type": "null"}]},
    "console.podDisruptionBudget.minAvailable": {"oneOf": [*_COUNT_OR_SHARE["oneOf"], {"type": "null"}]},
    "topics.strimzi.user.authentication": {"enum": ["scram-sha-512", "tls"]},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.registry": _REGISTRY,
    "image.repository": {"pattern": r"^([^\s/]+/)*[^\s/:@]+$"},
    "image.tag": {"pattern": r"^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$"},
    "service.ipFamilyPolicy": {"enum": ["", "SingleStack", "PreferDualStack", "RequireDualStack"]},
    "service.ipFamilies": {"items": {"enum": ["IPv4", "IPv6"]}, "maxItems": 2, "uniqueItems": True},
    "webhooks.existingConfigMaps": _NAMES,
    "webhooks.existingSecrets": _NAMES,
    "secretMounts": {
        "items": {
            "type": "object",
            "properties": {"name": _DNS_LABEL, "secretName": {"type": "string", "minLength": 1}, "items": _OBJECTS},
            "required": ["name", "secretName"],
            "additionalProperties": False,
        }
    },
    "workload.kind": {"enum": ["Deployment", "StatefulSet"]},
    "replicaCount": {"minimum": 0},
    "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1},
    "extraArgs": _NAMES,
    "probes.startup": _PROBE,
    "probes.liveness": _PROBE,
    "probes.readiness": _PROBE,
    "podDisruptionBudget.maxUnavailable": {"oneOf": [*_COUNT_OR_SHARE["oneOf"], {"type": "null"}]},
    "podDisruptionBudget.minAvailable": {"oneOf": [*_COUNT_OR_SHARE["oneOf"], {"type": "null"}]},
    "podDisruptionBudget.unhealthyPodEvictionPolicy": {"enum": ["AlwaysAllow", "IfHealthyBudget"]},
    "autoscaling.type": {"enum": ["none", "hpa", "keda"]},
    "autoscaling.minReplicas": {"minimum": 1},
    "autoscaling.maxReplicas": {"minimum": 1},
    "autoscaling.keda.inFlightUtilisation": _SHARE,
    "autoscaling": {
        "if": {"properties": {"type": {"const": "keda"}}, "required": ["type"]},
        "then": {"properties": {"keda": {"properties": {"serverAddress": {"pattern": "^https?://"}}}}},
    },
    "networkPolicy.kafka.ports": _PORTS,
    "networkPolicy.webhooks.ports": _PORTS,
    "networkPolicy.database.ports": _PORTS,
    "networkPolicy.smtp.ports": _PORTS,
    "networkPolicy.webhooks.cidrs": _NAMES,
    "networkPolicy.webhooks.exceptCidrs": _NAMES,
    "prometheusRule.objectives.delivery": _SHARE,
    "prometheusRule.objectives.freshness": _SHARE,
    "prometheusRule.disabled": {"additionalProperties": {"type": "boolean"}},
    "dashboards.labels": {"additionalProperties": {"type": "string"}},
    "console.extraArgs": _NAMES,
    "history.extraArgs": _NAMES,
    "history.replicaCount": {"minimum": 0},
    "console.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "console.ingress.hosts": _NAMES,
    "console.httpRoute.hostnames": _NAMES,
    "console.ingress": _where_enabled("hosts"),
    "console.httpRoute": _where_enabled("parentRefs"),
    "topics.create": {"enum": ["none", "job", "strimzi"]},
    "topics.partitions": {"minimum": 0},
    "topics.replicas": {"minimum": 1},
    "topics": {
        "if": {"properties": {"create": {"const": "strimzi"}}, "required": ["create"]},
        "then": {
            "properties": {
                "partitions": {"minimum": 1},
                "strimzi": {"properties": {"cluster": {"minLength": 1}}},
            }
        },
    },
    "extraManifests": {"items": {"type": ["object", "string"]}},
}
"""Rules of a schema beyond the default's type."""


class Value(NamedTuple):
    """One key of values.yaml."""

    path: str
    default: Any
    description: str


def values() -> list[Value]:
    """Every key in the file's order, those without a comment of their own too."""
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    found: list[Value] = []
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            if stripped.startswith("# -- "):
                comment = [stripped.removeprefix("# -- ")]
            elif comment:
                comment.append(stripped.removeprefix("# "))
            continue
        if match := _KEY.match(line):
            indent, key = len(match[1]), match[2]
            stack = [*((depth, name) for depth, name in stack if depth < indent), (indent, key)]
            default = defaults
            for _, name in stack:
                default = default.get(name) if isinstance(default, dict) else None
            found.append(Value(".".join(name for _, name in stack), default, " ".join(comment)))
        comment = []
    return found


def _type_of(default: object) -> dict[str, Any]:
    match default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
        case dict():
            return {"type": "object"}
        case _:
            return {}


def schema() -> dict[str, Any]:
    """values.schema.json, draft 7: what helm 3 and 4 both read."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the feedback-dispatcher chart",
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    definitions: dict[str, Any] = {}
    for value in values():
        *parents, name = value.path.split(".")
        if any(".".join(parents[:depth]) in FREE for depth in range(1, len(parents) + 1)):
            continue
        node = root
        for parent in parents:
            node = node["properties"][parent]
        made = _type_of(value.default)
        if value.description:
            made["description"] = value.description
        if isinstance(value.default, dict):
            if value.default and value.path not in FREE:
                made |= {"properties": {}, "additionalProperties": False}
        elif value.default is not None:
            made["default"] = value.default
        node["properties"][name] = made | DETAILS.get(value.path, {})
    config = _embedded(SchemaKind.SETTINGS, definitions)
    for filled_in in ("apiVersion", "webhooks"):
        config["required"].remove(filled_in)
    config.pop("required")
    properties = root["properties"]
    properties["config"] = config | {"description": properties["config"]["description"]}
    files = properties["webhooks"]["properties"]["files"]
    files["patternProperties"] = {r"^[a-zA-Z0-9][-._a-zA-Z0-9]*\.ya?ml$": {
        "oneOf": [{"type": "string"}, _embedded(SchemaKind.WEBHOOK, definitions)]
    }}  # fmt: skip
    files["additionalProperties"] = False
    return root | {"definitions": definitions}


def _embedded(kind: SchemaKind, definitions: dict[str, Any]) -> dict[str, Any]:
    """The dispatcher's own schema in the older dialect; its definitions join the others."""
    text = json.dumps(schema_of(kind)).replace("#/$defs/", "#/definitions/")
    made: dict[str, Any] = _plain(json.loads(text))
    for name, definition in made.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise ValueError(f"two different definitions of {name}")
    if kind is SchemaKind.SETTINGS:  # the chart fills in the path; brokers may come from the environment: checks.yaml
        definitions["WebhookSettings"].pop("required", None)
        definitions["KafkaSettings"].pop("required", None)
    made.pop("$schema", None)
    return made


def _plain(node: Any) -> Any:
    """Without titles, which repeat the names, and without what draft 7 ignores beside a $ref."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: {name: _plain(inner) for name, inner in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in node.items()
        if key not in ("title", "discriminator")
    }
    if "$ref" in kept and len(kept) > 1:
        reference = {"$ref": kept.pop("$ref")}
        kept["allOf"] = [reference]
    return kept


def _rows() -> Iterator[str]:
    yield "| value | default | what it is |"
    yield "|---|---|---|"
    for value in values():
        if value.description:
            default = json.dumps(deepcopy(value.default), ensure_ascii=False).replace("|", "\\|")
            default = f"`{default}`" if len(default) <= 60 else "see values.yaml"
            yield f"| `{value.path}` | {default} | {value.description.replace('|', chr(92) + '|')} |"


def readme() -> str:
    """Returns README.md with a current table of values."""
    table = "\n".join(_rows()) + "\n"
    return _TABLE.sub(lambda _: table, (CHART / "README.md").read_text())


def generated() -> dict[Path, str]:
    """Returns every generated file and its content."""
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        CHART / "README.md": readme(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
