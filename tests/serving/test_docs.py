"""docs/serving.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.requests import IGNORED, ChatRequest, CompletionRequest
from serving.rest.app import make_app
from serving.rest.watch import Watch
from serving.rpc.v1 import appliance_pb2 as pb
from serving.rpc.wire import SERVICE
from serving.server import Running
from serving.table import DEFECT, TABLE, Row

DOCS = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "field", sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *IGNORED})
)
def test_every_field_is_described(field: str) -> None:
    assert f"`{field}`" in DOCS


@pytest.mark.parametrize("row", [*TABLE.values(), DEFECT], ids=lambda row: row.code)
def test_every_error_is_described(row: Row) -> None:
    assert f"| `{row.code}` | {row.http} | {row.grpc.name} | `{row.type}` |" in DOCS


def test_every_path_is_described(deployment: Running) -> None:
    watch = Watch()
    app = make_app(deployment.core, watch)
    watch.close()
    described = re.findall(r"`(GET|POST) (/\S+)`", DOCS)
    served = [
        (method, re.sub("<.*>", "NAME", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) & {"GET", "POST"}
    ]
    assert sorted(described) == sorted(served)


def test_every_method_is_described() -> None:
    assert f"`{SERVICE}`" in DOCS
    for method in pb.DESCRIPTOR.services_by_name["LanguageModel"].methods:
        assert f"`{method.name}`" in DOCS
