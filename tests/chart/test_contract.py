"""The chart and the operator's command line speak of the same things."""

import os
from typing import Any
from unittest import mock

import click
from charting import Helm, Rendered

from relight_operator.__main__ import main

FROM_THE_POD = {"POD_NAME": "relight-6d5f", "POD_NAMESPACE": "relight-system"}


def parsed(rendered: Rendered) -> dict[str, Any]:
    """The operator's options as its container would have them."""
    with mock.patch.dict(os.environ, {**rendered.env(), **FROM_THE_POD}, clear=True):
        return main.make_context("relight_operator", list(rendered.container().get("args", ()))).params


def test_the_operator_knows_every_variable_that_it_is_given(helm: Helm) -> None:
    given = {e["name"] for e in helm.render().container()["env"]}
    known = {option.envvar for option in main.params if isinstance(option, click.Option) and option.envvar}
    assert given == known


def test_values_arrive_as_the_operator_reads_them(helm: Helm) -> None:
    resources = {"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": 8}}
    values = {
        "trainer.image": {"repository": "r/t", "tag": "3", "pullPolicy": "Never"},
        "trainer.imagePullSecrets": [{"name": "regcred"}],
        "trainer.resources": resources,
        "logLevel": "warning",
    }
    options = parsed(helm.render(values, release="red"))

    assert options["trainer_image"] == "r/t:3"
    assert options["trainer_image_pull_policy"] == "Never"
    assert options["trainer_image_pull_secrets"] == ("regcred",)
    assert options["trainer_resources"] == resources
    assert options["log_level"] == "warning"
    assert options["pod_name"] == FROM_THE_POD["POD_NAME"]


def test_agents_are_sent_to_the_service_of_the_leader(helm: Helm) -> None:
    rendered = helm.render(release="red")
    service = rendered.one("Service", "red-relight-coordinator")
    assert parsed(rendered)["coordinator"] == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert [port["port"] for port in service["spec"]["ports"]] == [443]  # https without a port in its URL


def test_the_ports_are_those_on_which_the_operator_listens(helm: Helm) -> None:
    rendered = helm.render()
    options = parsed(rendered)
    ports = {port["name"]: port["containerPort"] for port in rendered.container()["ports"]}
    assert ports == {"coordinator": options["coordinator_port"], "http": options["http_port"]}


def test_the_operator_may_take_its_time_to_end(helm: Helm) -> None:
    from relight_operator.kube.app import SHUTDOWN_SECONDS

    grace = helm.render().pod()["spec"]["terminationGracePeriodSeconds"]
    assert grace > 2 * SHUTDOWN_SECONDS
