"""A classifier of texts, which needs a locale, and a process of its own to score it in."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tests.support.processes import ROOT

SCORE_TEXTS = """
import json, sys
from app.errors import StartupError
from app.serving.model import Model
try:
    model = Model("texts", "1", open(sys.argv[1], "rb").read())
    print(json.dumps(model.score_rows([[text] for text in sys.argv[2:]]).probabilities.tolist()))
except StartupError as refused:
    print(refused)
"""


def build_text_pipeline() -> tuple[Any, bytes]:
    """Train and export a classifier of texts; its lower case needs the locale en_US.UTF-8."""
    texts = ["a good thing", "Bad worse stuff", "GOOD times", "Bad luck"]
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["good", "bad", "good", "bad"])
    model = to_onnx(pipeline, initial_types=[("text", StringTensorType([None, 1]))], options={"zipmap": False})
    return pipeline, bytes(model.SerializeToString())


def score_texts(content: bytes, folder: Path, locales: Path, texts: list[str]) -> str:
    """Score texts in a process whose locales are those in `locales`; return probabilities as JSON, or the refusal."""
    file = folder / "texts.onnx"
    file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", SCORE_TEXTS, str(file), *texts],
        cwd=ROOT,
        env=os.environ | {"LOCPATH": str(locales)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout
