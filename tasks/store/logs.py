"""Logging: plain text, or one JSON object per line (DECA_LOG=json).

A JSON line has `time` (UTC), `level`, `event` (the message), `rank` in distributed training, and the caller's
`extra={"fields": {...}}`: unit, plan, dataset, counts. No line contains image content or a credential.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys

from schemas.secrets import redact, shown

VARIABLE = "DECA_LOG"  # json; anything else: plain text
EVENTS = "deca.events"  # logged only as JSON, such as every commit of a unit


class WordsHandler(logging.Handler):
    """Prints to the current sys.stderr, so that a progress bar stays below the log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(shown(self.format(record)), file=sys.stderr, flush=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_rank(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        plain = {key: redact(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(plain, default=str, ensure_ascii=False)


def _rank() -> dict[str, int]:
    rank = os.environ.get("RANK", "")
    return {"rank": int(rank)} if rank.isdigit() else {}


def set_up() -> None:
    """Configure the product's loggers to write to stderr, in the format of $DECA_LOG."""
    handler: logging.Handler = WordsHandler()
    machines = as_json()
    if machines:
        handler.setFormatter(JsonFormatter())
    log = logging.getLogger("deca")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger(EVENTS).setLevel(logging.INFO if machines else logging.ERROR)


def as_json() -> bool:
    """Whether log lines are JSON."""
    return os.environ.get(VARIABLE, "").lower() == "json"
