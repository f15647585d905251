"""Recognize the files that people take for ONNX files, by their first bytes."""

import pickle

EXPORT_FIRST = "export the model to ONNX first, docs/models.md shows how"

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", f"a zip file, as PyTorch's torch.save and Keras write them: {EXPORT_FIRST}"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes them: {EXPORT_FIRST}"),
    (b"CBM1", 'a CatBoost model: save it with model.save_model(path, format="onnx")'),
    (b"tree\n", f"a LightGBM model as text: {EXPORT_FIRST}"),
    (b'{"learner"', f"an XGBoost model as JSON: {EXPORT_FIRST}"),
    (b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner", f"an XGBoost model as UBJSON: {EXPORT_FIRST}"),
    (b"version https://git-lfs", 'a Git LFS pointer and not the model itself: run "git lfs pull"'),
    (b"\x1f\x8b", "a gzip file: unpack it"),
    (b"<!DOCTYPE", "a web page: the download did not give the file"),
    (b"<html", "a web page: the download did not give the file"),
)


def name_foreign_format(content: bytes) -> str | None:
    """Return what a file is and what to do, when it is no ONNX file but of a known kind; else None."""
    if content[:1] == pickle.PROTO and content[1:2] in b"\x02\x03\x04\x05" and len(content) > 1:
        return f"a Python pickle, which is not loaded, because it could run any code: {EXPORT_FIRST}"
    return next((text for signature, text in SIGNATURES if content.startswith(signature)), None)
