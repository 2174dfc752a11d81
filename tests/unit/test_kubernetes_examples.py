# SPDX-License-Identifier: Apache-2.0
"""The manifests for Kubernetes: what they say fits together, and fits what the runtime and the how-to say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from backends.qemu.settings import Qemu
from runphi_async.oci.spec import Process, Spec
from runphi_async.partition.podannotations import of_container
from runphi_async.partition.request import request
from runphi_async.partition.spec import GuestKind
from runphi_async.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parents[2]
EXAMPLES = HERE / "examples" / "kubernetes"
GUIDE = (HERE / "docs" / "how-to" / "kubernetes-node.md").read_text()
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
#: what an annotation's key may be: an optional DNS subdomain, then a name
KEY = re.compile(rf"((?=.{{1,253}}/){DNS_LABEL}(\.{DNS_LABEL})*/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?")
PLUGIN = "io.containerd.grpc.v1.cri"
PARTITION = "runphi.org/partition"

#: object -> the fields that Kubernetes has there, as far as the manifests use them
FIELDS = {
    "RuntimeClass": {"apiVersion", "kind", "metadata", "handler", "scheduling", "overhead"},
    "Deployment": {"apiVersion", "kind", "metadata", "spec"},
    "Deployment.spec": {"replicas", "strategy", "selector", "template"},
    "Job": {"apiVersion", "kind", "metadata", "spec"},
    "Job.spec": {"backoffLimit", "template"},
    "pod": {
        "runtimeClassName", "nodeSelector", "automountServiceAccountToken", "enableServiceLinks", "restartPolicy",
        "terminationGracePeriodSeconds", "containers",
    },
    "container": {
        "name", "image", "imagePullPolicy", "command", "args", "env", "stdin", "tty", "resources", "readinessProbe",
        "terminationMessagePolicy",
    },
}  # fmt: skip
VERSIONS = {"RuntimeClass": "node.k8s.io/v1", "Deployment": "apps/v1", "Job": "batch/v1"}


def objects() -> Iterator[dict[str, Any]]:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        yield from filter(None, yaml.safe_load_all(path.read_text()))


def templates() -> list[dict[str, Any]]:
    return [found["spec"]["template"] for found in objects() if "template" in found.get("spec", {})]


def runtime_class() -> dict[str, Any]:
    (found,) = (x for x in objects() if x["kind"] == "RuntimeClass")
    return found


def spec_of(template: dict[str, Any], container: dict[str, Any]) -> Spec:
    """What the runtime sees of a container: the engine adds its name and hands on the pod's annotations."""
    annotations = {**template["metadata"]["annotations"], "io.kubernetes.cri.container-name": container["name"]}
    env = [f"{x['name']}={x['value']}" for x in container.get("env", [])]
    return Spec(annotations=of_container(annotations), process=Process(env=env))


def test_versions_and_fields() -> None:
    for found in objects():
        assert found["apiVersion"] == VERSIONS[found["kind"]]
        assert found.keys() <= FIELDS[found["kind"]]
        if "spec" in found:
            assert found["spec"].keys() <= FIELDS[f"{found['kind']}.spec"]
    for template in templates():
        assert template["spec"].keys() <= FIELDS["pod"]
        for container in template["spec"]["containers"]:
            assert container.keys() <= FIELDS["container"]


def test_selectors_find_their_pods() -> None:
    for found in objects():
        selector = found.get("spec", {}).get("selector", {}).get("matchLabels", {})
        labels = found.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
        assert selector.items() <= labels.items()


def test_class_names_the_handler_of_containerd() -> None:
    config = tomllib.loads((EXAMPLES / "containerd.toml").read_text())
    (name,) = config["plugins"][PLUGIN]["containerd"]["runtimes"]
    assert re.fullmatch(DNS_LABEL, name)
    assert runtime_class()["handler"] == name
    for template in templates():
        assert template["spec"]["runtimeClassName"] == runtime_class()["metadata"]["name"]


def test_guide_shows_the_same_configuration() -> None:
    block = re.search(r'(?m)(?:^    .*\n)*^    \[plugins\."io\.containerd.*\n(?:^    .*\n)+', GUIDE)
    assert block
    shown = tomllib.loads(block[0])
    assert shown == tomllib.loads((EXAMPLES / "containerd.toml").read_text())
    assert all(f"examples/kubernetes/{path.name}" in GUIDE for path in EXAMPLES.iterdir())


def test_guide_labels_what_is_selected_and_counts_what_is_asked_for() -> None:
    label = re.search(r"kubectl label node NODE (.*)", GUIDE)
    assert label
    labels = dict(word.split("=") for word in label[1].split())
    for selector in (runtime_class()["scheduling"], *(template["spec"] for template in templates())):
        assert selector.get("nodeSelector", {}).items() <= labels.items()
    assert f"/status/capacity/{PARTITION.replace('/', '~1')}" in GUIDE


def test_overhead_is_what_the_runtime_adds_for_the_machine() -> None:
    overhead = runtime_class()["overhead"]["podFixed"]["memory"]
    for template in templates():
        partitions = sum(request(spec_of(template, x)) is not None for x in template["spec"]["containers"])
        assert parse_size(overhead) >= partitions * Qemu().overhead_bytes


def test_every_partition_asks_for_one() -> None:
    for template in templates():
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            partition = request(spec_of(template, container)) is not None
            asked = resources["requests"].get(PARTITION)
            assert asked == resources["limits"].get(PARTITION), "an extended resource cannot be promised twice"
            assert asked == ("1" if partition else None)
            assert {"cpu", "memory"} <= resources["limits"].keys() or not partition


def test_annotations_are_understood() -> None:
    for template in templates():
        names = {container["name"] for container in template["spec"]["containers"]}
        for key, value in template["metadata"]["annotations"].items():
            assert KEY.fullmatch(key), key
            assert isinstance(value, str), f"{key}: Kubernetes takes texts only"
            assert key.partition("/")[2] in {"", *names}
        for container in template["spec"]["containers"]:
            request(spec_of(template, container))  # an unknown one is an error here


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("deployment.yaml", "plc", GuestKind.INMATE),
        ("deployment.yaml", "watch", None),
        ("job-linux-guest.yaml", "main", GuestKind.LINUX),
    ],
)
def test_who_becomes_what(file: str, name: str, kind: GuestKind | None) -> None:
    template = yaml.safe_load((EXAMPLES / file).read_text())["spec"]["template"]
    (container,) = (x for x in template["spec"]["containers"] if x["name"] == name)
    asked = request(spec_of(template, container))
    assert (asked.kind if asked else None) is kind
