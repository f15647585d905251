"""Scorekeeper: serve ONNX classifiers, keep every prediction, know how good the model is.

A map of the house; imports point down. `docs/architecture.md` has every file.

asgi, commands/   what is opened in which order, which path leads where; the commands of `scorekeeper`
server/           uvicorn for production: deadlines and limits for connections, and the short way of POST /predict
open_inference/, openapi/, jobs, replay/, exchange/
                  /v2; the document of all routes; what runs when; recorded rows through a server; files in and out
api/              one module per resource; `api/predict.py` and `api/labels.py` read as the lists of steps that they are
web/, state       what every handler shares, and what the lifespan hands to it
serving/          features -> scores: model files, the repository of served versions, reloading, batching
prediction_log/   scores -> durable rows: records, what a 200 waits for, shipping, partitions
quality/          labels -> numbers: taking labels, the ledger, refreshing the results
spool/, measures/, database/
                  rows on local disk; pure arithmetic; connections, migration on start, the embedded server
files, group_commit, metrics, logs, tasks, settings, errors
"""

from app.asgi import main

__all__ = ["main"]
