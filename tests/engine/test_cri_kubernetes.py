# SPDX-License-Identifier: Apache-2.0
"""The manifests for Kubernetes, run on a real CRI engine as kubelet would run them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.engine.cri import CriError
from tests.engine.kubelet import Kubelet, documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.pods import PodEngine

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


@pytest.fixture
def kubelet(pods: PodEngine) -> Iterator[Kubelet]:
    (runtime_class,) = documents("runtimeclass.yaml")
    made = Kubelet(pods, runtime_class)
    yield made
    made.close()


def test_deployment(pods: PodEngine, kubelet: Kubelet) -> None:
    (deployment,) = documents("deployment.yaml")
    template = deployment["spec"]["template"]
    pod, containers = kubelet.run(template)
    plc, watch = containers["plc"], containers["watch"]
    plc.says("runPHI demo inmate")
    watch.says("watching")
    assert len(pods.guests()) == 1
    plan = (pods.run_dir / plc.id / f"config{plc.id}.conf").read_text()
    assert re.search(r"-m 64M?\b", plan), plan
    # kubectl attach
    with plc.attach(tty=True) as stream:
        stream.ask(b"echo from kubectl\r", b"\r\nfrom kubectl")
    plc.says("\nfrom kubectl\n")  # kubectl logs
    # the probe of the ordinary container, and what kubectl exec says of the other
    assert watch.call("ExecSync", cmd=["/bin/true"], timeout=30)["exit_code"] == 0
    with pytest.raises(CriError, match="not supported by this guest"):
        plc.call("ExecSync", cmd=["/bin/true"], timeout=30)
    # kubectl delete
    grace = template["spec"]["terminationGracePeriodSeconds"]
    plc.stop(grace)
    watch.stop(grace)
    assert [x.status()["exit_code"] for x in (plc, watch)] == [143, 137]  # sleep as pid 1 is deaf to TERM
    pod.stop()
    pod.remove()
    assert pods.containers() == []


def test_job_with_a_linux_guest(pods: PodEngine, kubelet: Kubelet) -> None:
    (job,) = documents("job-linux-guest.yaml")
    _, containers = kubelet.run(job["spec"]["template"])
    main = containers["main"]
    assert main.exited() == 7
    hello, kernel = main.text().splitlines()
    assert hello == "hello from a guest"
    assert kernel != os.uname().release
