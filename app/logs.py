"""Set up logging for the whole process: lines for people or JSON for machines, on standard error."""

import logging
import logging.config

from app.settings import LogFormat

FORMATTERS = {
    "console": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"},
    "json": {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "fmt": "%(levelname)s %(name)s %(message)s",
        "rename_fields": {"levelname": "level", "name": "logger"},
        "timestamp": True,
    },
}


def configure_logging(log_format: LogFormat) -> None:
    """Send `app`'s records and uvicorn's through one handler; libraries speak from WARNING on."""
    uvicorn_logger = {"level": "INFO", "handlers": [], "propagate": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": FORMATTERS,
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": "INFO"},
                "uvicorn": uvicorn_logger,
                "uvicorn.error": uvicorn_logger,
                "uvicorn.access": {**uvicorn_logger, "propagate": _is_access_logged()},
            },
        }
    )


def _is_access_logged() -> bool:
    """Tell whether uvicorn was started without --no-access-log, which takes this logger's handlers away."""
    logger = logging.getLogger("uvicorn.access")
    return bool(logger.handlers) or logger.propagate
