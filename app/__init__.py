"""Scorekeeper: serve ONNX classifiers, keep every prediction, know how good the model is.

A map of the rooms; imports point down. `docs/architecture.md` has every file.

asgi, commands/   the composition root: lifespan and routes; the commands of `scorekeeper`
server/           uvicorn for production: deadlines and limits for connections, and the short door of POST /predict
open_inference/, openapi/, jobs, replay/, exchange/
                  the Open Inference Protocol; the OpenAPI document; scheduled jobs; sending recorded rows to a
                  server; files in and out
api/              one module per resource; `api/predict.py` and `api/labels.py` read as lists of steps
web/, state       what all handlers share, and what the lifespan hands to them
serving/          features -> scores: model files, the repository of served versions, reloading, batching
prediction_log/   scores -> durable rows: records, the wait until they are safe, shipping, partitions
quality/          labels -> numbers: taking labels, the ledger, refreshing the results
spool/, measures/, database/
                  rows on local disk; pure arithmetic; connections, migration on start, the embedded server
files, group_commit, metrics, logs, tasks, settings, errors
"""

from app.asgi import main

__all__ = ["main"]
