"""Text models where the locale that they need is there: made by the command that a refusal advises."""

import json
import subprocess
from pathlib import Path

import numpy as np

from tests.support.text_models import build_text_pipeline, score_texts


def test_text_model_answers_as_scikit_learn_when_the_advised_locale_is_there(tmp_path: Path) -> None:
    pipeline, content = build_text_pipeline()
    texts = ["Good STUFF", "worse luck", "other"]
    locale = str(tmp_path / "en_US.UTF-8")
    subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", "--no-archive", locale], check=True, timeout=60)

    answered = score_texts(content, tmp_path, tmp_path, texts)

    np.testing.assert_allclose(np.array(json.loads(answered)), pipeline.predict_proba(texts), atol=1e-5)
