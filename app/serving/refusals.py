"""What onnxruntime says when it refuses a file or a run, whole and on one line, and what the operator can do."""

import re

REASON_LIMIT = 2_000
"""Most characters of a reason: onnxruntime may print a whole graph."""

CODE_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : ([A-Z_]+) : ")
SOURCE_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\)(?:::<lambda\(\)>)?(?= [A-Z])")
"""The file and the C++ signature of the function that raised the error: about 200 characters before the reason."""

LOCALE_HINT = (
    "the text operators of this model need the locale {0}, which this machine does not have: the Docker image has it; "
    'on Debian and Ubuntu, run "apt-get install locales && localedef -i en_US -f UTF-8 en_US.UTF-8" as root, and start '
    "again"
)

HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"Unsupported model IR version: \d+, max supported IR version: (\d+)"),
        'load the file with the Python package onnx, set "model.ir_version = {}" and save it again',
    ),
    (
        re.compile(r"support for domain (\S+) is till opset (\d+)"),
        "export with opset {1} of {0} at most (target_opset of skl2onnx and onnxmltools, opset_version of PyTorch)",
    ),
    (
        re.compile(r"external|/dev/null", re.IGNORECASE),
        'its weights are in another file: "scorekeeper model pack" writes one file',
    ),
    (
        re.compile(r"Type Error:.*(?:tensor\(double\)|tensor\(float\)).*", re.DOTALL),
        'if it was exported with float64 features, export with float32 ones: X[:1].astype("float32") for to_onnx',
    ),
    (
        re.compile(r"Could not find an implementation for (\S+)"),
        'onnxruntime has no {0} for these types: if it was exported with float64 features, export X.astype("float32")',
    ),
    (
        re.compile(r"No Op registered for|is not a registered function/op"),
        "operators of custom libraries are not loaded: export the model with operators of ai.onnx and ai.onnx.ml only",
    ),
    (
        re.compile(r"Failed to construct locale with name:([\w.@-]+)"),
        LOCALE_HINT,
    ),
    (
        re.compile(r"protobuf parsing failed|ModelProto does not have a graph"),
        "the file is truncated, or it is not an ONNX file",
    ),
)
"""What onnxruntime says, and what helps; `{0}` is what the first group has found. The first match counts."""


def tell_reason(error: BaseException) -> str:
    """Return the whole reason on one line, without the place in onnxruntime's source code."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = SOURCE_PLACE.sub("", CODE_PREFIX.sub(r"\1: ", text)).replace("  ", " ")
    half = REASON_LIMIT // 2
    return text if len(text) <= REASON_LIMIT else f"{text[:half]} ... {text[-half:]}"


def find_hint(error: BaseException) -> str | None:
    """Return what helps against an error of onnxruntime, None when nothing is known."""
    for pattern, hint in HINTS:
        if found := pattern.search(str(error)):
            return hint.format(*found.groups())
    return None
