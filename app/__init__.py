"""Scorekeeper: serve ONNX classifiers, keep every prediction, know how good the model is.

A map of the house, along the way of a prediction:

asgi            what is opened in which order, which path leads where
api/            HTTP in and out; `api/predict.py` and `api/labels.py` read as the lists of steps that they are;
                `api/operations.py` is the table of what each route takes and answers, page/ what / and /docs show
serving/        features -> scores: model files (loading), the repository of served versions, reloading, pins, batching
prediction_log/ scores -> durable rows: record, journal (the spool), shipper, or committer; partitions, pages
quality/        labels -> numbers: taking labels, counting, F1 with bounds and its kin (`measures` has them all)
jobs            what runs in the background and when
database/       pool, migration on start, the embedded server
server, protocol  uvicorn with our deadlines and limits; direct: /predict without ASGI
exchange/       files: labels in, to a running server; labelled rows out, from PostgreSQL
cli, model_commands, replay, spool_commands, quality_commands: the commands
metrics, logs, tasks, settings, errors, state: what their names say
"""

from app.asgi import main

__all__ = ["main"]
