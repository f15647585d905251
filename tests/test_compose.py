"""compose.yaml, the Dockerfile and .env.example fit the code and each other; `tests/compose` tests that they run."""

import re
import tomllib
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app import asgi, scheduling
from app.asgi import ROUTES
from app.commands.parser import parse_arguments
from app.database import pool
from app.prediction_log import spooled_log
from app.server.deadlines import Limits
from app.settings import Settings
from tests.support.compose_file import COMPOSE, SERVICES
from tests.support.environment import Recorder
from tests.support.processes import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

BASE_IMAGES = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
PUBLIC_IMAGES = {service["image"] for service in SERVICES.values() if not service["image"].startswith("scorekeeper:")}

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_services_are_those_of_the_stack_on_the_known_ports() -> None:
    ports = {
        name: int(port.rpartition(":")[2]) for name, service in SERVICES.items() for port in service.get("ports", [])
    }

    assert ports == {"app": 8000, "db": 5432, "prometheus": 9090, "grafana": 3000, "alertmanager": 9093}
    assert SERVICES.keys() - ports.keys() == {"demo"}


@every_service
def test_service_listens_on_loopback_only_by_default_at_its_own_port(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-(\d+)\}:\1", port)


@every_service
def test_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service


@every_service
def test_service_says_whether_it_is_healthy(service: dict[str, Any]) -> None:
    by_image = service["image"].startswith("scorekeeper:") and "HEALTHCHECK" in DOCKERFILE

    assert by_image or service["healthcheck"]["test"]


@pytest.mark.parametrize("image", sorted(PUBLIC_IMAGES | BASE_IMAGES))
def test_image_is_pinned_to_a_version(image: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+[\w.-]*", image)


def test_image_of_ours_has_the_version_of_the_package() -> None:
    version = PROJECT["project"]["version"]

    assert {service["image"] for service in SERVICES.values()} - PUBLIC_IMAGES == {f"scorekeeper:{version}"}


def test_stand_ins_are_made_for_every_public_image_but_grafana() -> None:
    made = set(re.findall(r"^tag (\S+)", (ROOT / "tests/compose/images").read_text(), re.MULTILINE))

    assert {image.partition(":")[0] for image in (PUBLIC_IMAGES | BASE_IMAGES) - made} == {"grafana/grafana"}
    assert made <= PUBLIC_IMAGES | BASE_IMAGES


@every_service
def test_mounted_files_exist(service: dict[str, Any]) -> None:
    sources = [volume.split(":") for volume in service.get("volumes", [])]

    for source, target, *mode in sources:
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"], source
        else:
            assert source in COMPOSE["volumes"], target


def test_every_volume_and_secret_is_used() -> None:
    volumes = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    secrets = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}

    assert {name for name in volumes if not name.startswith(".")} == COMPOSE["volumes"].keys()
    assert secrets == COMPOSE["secrets"].keys()


def test_secrets_are_files_whose_demo_values_fit_together() -> None:
    directory = ROOT / "deploy" / "secrets"
    values = {name: (directory / name).read_text().strip() for name in COMPOSE["secrets"]}
    url = urlsplit(values["database_url"])
    database = SERVICES["db"]["environment"]

    assert {entry["file"] for entry in COMPOSE["secrets"].values()} == {
        f"${{SECRETS_DIR:-./deploy/secrets}}/{name}" for name in values
    }
    assert (url.hostname, url.port) == ("db", 5432)
    assert (url.username, url.password) == (database["POSTGRES_USER"], values["postgres_password"])
    assert url.path == f"/{database['POSTGRES_DB']}"
    assert values["grafana_admin_password"] == "admin"


@every_service
def test_files_of_secrets_are_those_that_the_service_is_given(service: dict[str, Any]) -> None:
    named = {value for value in service.get("environment", {}).values() if str(value).startswith("/run/secrets/")}

    assert named <= {f"/run/secrets/{name}" for name in service.get("secrets", [])}


def test_every_variable_of_the_server_is_a_setting() -> None:
    Settings.from_env(Recorder())
    given = set(SERVICES["app"]["environment"])
    in_image = set(re.findall(r"\b([A-Z0-9_]+)=", DOCKERFILE.partition("COPY --from=build")[2]))
    for_others = {"PATH", "PYTHONDONTWRITEBYTECODE", "ALEMBIC_CONFIG"}

    assert given <= Recorder.asked
    assert in_image - for_others <= Recorder.asked


def test_env_example_has_every_choice_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    choices = re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", (ROOT / "compose.yaml").read_text())
    assert shown == dict(choices)


@pytest.mark.parametrize("name", ["app", "demo"])
def test_commands_are_ones_that_the_package_has(name: str) -> None:
    program, *arguments = SERVICES[name]["command"]

    assert program in PROJECT["project"]["scripts"]
    assert callable(parse_arguments(arguments).run)


def test_demo_replays_through_the_server_across_the_drift() -> None:
    options = parse_arguments(SERVICES["demo"]["command"][1:])

    assert options.url == "http://app:8000"
    assert options.loop
    assert 0 < options.label_share < 1
    assert options.start < 25_000 < options.start + options.rows


def test_container_listens_everywhere_and_asks_itself_whether_it_is_ready() -> None:
    command = re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1]
    arguments = yaml.safe_load(command)
    checked = re.search(r"'GET', '([^']+)'", DOCKERFILE)

    assert arguments[0] in PROJECT["project"]["scripts"]
    assert (
        parse_arguments(arguments[1:]).host == "0.0.0.0"
    )  # inside its own network; compose.yaml publishes on loopback
    assert checked is not None
    assert checked[1] in {route.path for route in ROUTES}


def test_container_runs_as_a_fixed_user_that_is_not_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "useradd --uid 10001 " in DOCKERFILE


def test_server_has_time_to_stop() -> None:
    longest = (
        asgi.STOP_DELAY_SECONDS
        + Limits().graceful_seconds
        + scheduling.STOP_SECONDS
        + spooled_log.DRAIN_SECONDS
        + pool.CLOSE_TIMEOUT_SECONDS
    )

    assert float(SERVICES["app"]["stop_grace_period"].removesuffix("s")) >= longest


def test_build_context_has_all_that_the_wheel_is_made_of() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], PROJECT["project"]["readme"], "pyproject.toml"}
    needed |= set(PROJECT["project"]["license-files"])
    needed |= set(re.findall(r"^COPY ([\w.-]+) \./$", DOCKERFILE, re.MULTILINE)) - {"."}

    assert {path.partition("/")[0] for path in needed} == allowed


def test_compose_file_keeps_to_what_docker_compose_1_29_knows() -> None:
    assert COMPOSE.keys() <= {"x-service", "services", "volumes", "secrets"}
    assert "start_interval" not in (ROOT / "compose.yaml").read_text()
    assert all("env_file" not in service for service in SERVICES.values())
