import re
from datetime import timedelta
from pathlib import Path

import pytest

from app.errors import StartupError
from app.settings import QualityWindow, Settings
from tests.support.environment import Recorder


def test_from_env_without_variables_gives_the_documented_defaults() -> None:
    settings = Settings.from_env({})

    assert settings.database_url is None
    assert settings.data_dir == Path.cwd() / "data"
    assert (settings.model_dir / "car-loan" / "1" / "model.onnx").is_file()
    assert settings.default_model is None
    assert settings.migrate_on_start
    assert settings.f1_interval_seconds == 15
    assert [window.name for window in settings.quality_windows] == ["1h", "24h", "7d"]
    assert settings.f1_average is None
    assert settings.f1_objective is None
    assert settings.min_labels == 50
    assert settings.retention_days == 0
    assert settings.max_body_bytes == 8 * 1024 * 1024
    assert settings.max_batch_rows == 10_000
    assert settings.log_format == "console"


def test_from_env_reads_windows() -> None:
    settings = Settings.from_env({"QUALITY_WINDOWS": "5m, 7d"})

    assert settings.quality_windows == (
        QualityWindow("5m", timedelta(minutes=5)),
        QualityWindow("7d", timedelta(days=7)),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIGRATE_ON_START", "perhaps"),
        ("F1_INTERVAL_SECONDS", "0"),
        ("F1_INTERVAL_SECONDS", "nan"),
        ("QUALITY_WINDOWS", "1h,60m"),
        ("QUALITY_WINDOWS", "0h"),
        ("QUALITY_WINDOWS", "366d"),
        ("QUALITY_WINDOWS", "1w"),
        ("F1_AVERAGE", "mean"),
        ("F1_OBJECTIVE", "1.1"),
        ("F1_OBJECTIVE", "nan"),
        ("MIN_LABELS", "0"),
        ("RETENTION_DAYS", "-1"),
        ("RETENTION_DAYS", "1.5"),
        ("MAX_BODY_BYTES", "8MiB"),
        ("MAX_BATCH_ROWS", "-1"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_from_env_with_a_wrong_value_names_variable_value_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(StartupError) as error:
        Settings.from_env({name: value})

    assert str(error.value).startswith(f"{name} is {value!r}, allowed is ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "secret", "postgresql://[secret"])
def test_from_env_with_another_kind_of_url_does_not_show_it(url: str) -> None:
    with pytest.raises(StartupError) as error:
        Settings.from_env({"DATABASE_URL": url})

    assert "DATABASE_URL" in str(error.value)
    assert "secret" not in str(error.value)


def test_from_env_reads_the_url_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:p@h/d\n")

    settings = Settings.from_env({"DATABASE_URL_FILE": str(tmp_path / "url")})

    assert settings.database_url == "postgresql://u:p@h/d"


@pytest.mark.parametrize("content", [None, "", "\n", "\udcff"])
def test_from_env_with_an_unusable_secret_file_names_it(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(StartupError, match="DATABASE_URL_FILE is "):
        Settings.from_env({"DATABASE_URL_FILE": str(path)})


def test_from_env_with_a_secret_and_its_file_refuses_both(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="both set"):
        Settings.from_env({"DATABASE_URL": "postgresql://h/d", "DATABASE_URL_FILE": str(tmp_path / "url")})


def test_every_setting_stands_in_the_table_of_the_readme_and_no_other() -> None:
    Settings.from_env(Recorder())

    table = (Path(__file__).parent.parent / "README.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", table, re.MULTILINE))
    assert Recorder.asked - {"DATABASE_URL_FILE"} == documented
    assert "DATABASE_URL_FILE" in table
