"""The stack as docker-compose sees it: a project of its own, with its own volumes and free ports."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from tests.support.processes import ROOT, find_free_port

PROJECT = "scorekeeper-test"

COMMAND_SECONDS = 600
"""For the longest command, which builds the image or pulls others."""

CONFIGURATION: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())

PORTS = {"app": "APP_PORT", "db": "POSTGRES_PORT", "prometheus": "PROMETHEUS_PORT", "grafana": "GRAFANA_PORT"}
PORTS |= {"alertmanager": "ALERTMANAGER_PORT"}


def run(*command: str, check: bool = True, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed; unless told otherwise, fail with it when it fails."""
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout.strip()


def find_services() -> list[str]:
    """Name the services whose image is here or can be had; all of them, or all but Grafana."""
    services = CONFIGURATION["services"]
    images = {name: service["image"] for name, service in services.items() if not is_ours(service["image"])}
    missing = {name for name, image in images.items() if not has_image(image)}
    assert missing <= {"grafana"}, f"no image for {', '.join(sorted(missing))}"
    return [name for name in services if name not in missing]


def is_ours(image: str) -> bool:
    """Tell whether an image is built from this repository."""
    return image in {service["image"] for service in CONFIGURATION["services"].values() if "build" in service}


def has_image(image: str) -> bool:
    """Tell whether the engine has an image, or has just got it."""
    for command in ("inspect", "pull"):
        done = subprocess.run(
            ["docker", "image", command, image], check=False, capture_output=True, timeout=COMMAND_SECONDS
        )
        if done.returncode == 0:
            return True
    return False


class Stack:
    """A project of its own, of the given services, on free ports; nothing runs until `compose("up")`."""

    def __init__(self, services: Sequence[str]) -> None:
        self.services = list(services)
        self._containers: dict[str, str] = {}
        self._ports = {name: find_free_port() for name in PORTS}
        self._environment = {variable: str(self._ports[name]) for name, variable in PORTS.items()}
        has_plugin = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode == 0
        self._command = ["docker", "compose"] if has_plugin else ["docker-compose"]

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run docker compose on this project."""
        command = [*self._command, "--project-name", PROJECT, *arguments]
        return run(*command, check=check, environment=self._environment)

    def url(self, service: str) -> str:
        """Return where a service listens."""
        return f"http://127.0.0.1:{self._ports[service]}"

    @property
    def database_url(self) -> str:
        """The database as the host sees it, with the demo's password."""
        url = (ROOT / "deploy" / "secrets" / "database_url").read_text().strip()
        return url.replace("@db:5432/", f"@127.0.0.1:{self._ports['db']}/")

    def container(self, service: str) -> str:
        """Return the id of a service's container, which stays the same from its first start on."""
        if service not in self._containers:
            self._containers[service] = self.compose("ps", "--quiet", service).splitlines()[-1]
        return self._containers[service]

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of a service's container."""
        found: dict[str, Any] = json.loads(run("docker", "inspect", self.container(service)))[0]
        return found

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container."""
        return run("docker", "exec", self.container(service), *command, check=check)

    def is_healthy(self, service: str) -> bool:
        """Tell whether a service is healthy, or runs, where there is no check."""
        state = self.inspect(service)["State"]
        healthy: bool = state["Health"]["Status"] == "healthy" if "Health" in state else state["Running"]
        return healthy
