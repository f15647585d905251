"""What two clients of the Open Inference Protocol see of a server: run with an environment of their own.

`python open_inference_clients.py HOST:PORT ROWS`, rows as JSON, prints one JSON object: answers and checks per client.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as sync_client
import tritonclient.http.aio as aio_client
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from tritonclient.utils import InferenceServerException

ROWS = np.array(json.loads(sys.argv[2]), dtype=np.float32)
MODEL = "car-loan"


def make_input(*, binary: bool) -> Any:
    """Return the rows as tritonclient's input."""
    tensor = sync_client.InferInput("features", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return tensor


def show(result: Any) -> dict[str, Any]:
    """Return what matters of tritonclient's result."""
    ids = json.loads(result.get_response()["parameters"]["prediction_ids"])
    return {
        "label": result.as_numpy("label").tolist(),
        "probabilities": result.as_numpy("probabilities").tolist(),
        "ids": ids,
    }


def ask_for_outputs(*, binary: bool) -> list[Any]:
    """Return both outputs as tritonclient's requested outputs."""
    return [sync_client.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]


def run_sync(url: str) -> dict[str, Any]:
    """Call everything that tritonclient's blocking client has for what the server supports."""
    with sync_client.InferenceServerClient(url) as client:
        seen = {
            "default": show(client.infer(MODEL, [make_input(binary=True)])),
            "json": show(client.infer(MODEL, [make_input(binary=False)], outputs=ask_for_outputs(binary=False))),
            "mixed": show(client.infer(MODEL, [make_input(binary=False)], outputs=ask_for_outputs(binary=True))),
            "version": show(client.infer(MODEL, [make_input(binary=True)], model_version="1", request_id="7")),
            "thread": show(client.async_infer(MODEL, [make_input(binary=True)]).get_result()),
        }
        for coding in ("gzip", "deflate"):
            options = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
            seen[coding] = show(client.infer(MODEL, [make_input(binary=True)], **options))
        checks = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready(MODEL),
            "version ready": client.is_model_ready(MODEL, "1"),
            "other ready": client.is_model_ready("other"),
            "server": client.get_server_metadata()["name"],
            "metadata": client.get_model_metadata(MODEL, "1")["name"],
            "config": client.get_model_config(MODEL)["name"],
            "index": [one["state"] for one in client.get_model_repository_index()],
            "statistics": len(client.get_inference_statistics()["model_stats"]),
            "model statistics": len(client.get_inference_statistics(MODEL, "1")["model_stats"]),
            "load": client.load_model(MODEL),
            "errors": [
                read_error(lambda: client.infer("other", [make_input(binary=True)])),
                read_error(lambda: client.unload_model(MODEL)),
                read_error(client.get_system_shared_memory_status),
                read_error(client.get_trace_settings),
                read_error(client.get_log_settings),
            ],
        }
    return {"answers": seen, "checks": checks}


def read_error(call: Any) -> str:
    """Return the status of the error that a call raises, or its text when the client could not read the answer."""
    try:
        call()
    except InferenceServerException as error:
        is_read = "an exception occurred in the client" not in error.message()
        return str(error.status()) if is_read else error.message()
    return "none"


async def run_aio(url: str) -> dict[str, Any]:
    """Call tritonclient's asyncio client."""
    async with aio_client.InferenceServerClient(url) as client:
        seen = {
            "default": show(await client.infer(MODEL, [make_input(binary=True)])),
            "json": show(await client.infer(MODEL, [make_input(binary=False)], outputs=ask_for_outputs(binary=False))),
        }
        checks = {"ready": await client.is_server_ready(), "model ready": await client.is_model_ready(MODEL)}
    return {"answers": seen, "checks": checks}


async def run_kserve(url: str) -> dict[str, Any]:
    """Call KServe's client."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://{url}"
    seen = {}
    for name, binary in (("default", True), ("json", False)):
        tensor = InferInput("features", list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS, binary_data=binary)
        response = await client.infer(base, InferRequest(MODEL, [tensor], request_id="7"), model_name=MODEL)
        outputs = {output.name: output.as_numpy().tolist() for output in response.outputs}
        ids = json.loads(response.to_rest()[0]["parameters"]["prediction_ids"])
        seen[name] = {**outputs, "ids": ids}
    checks = {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model ready": await client.is_model_ready(base, MODEL),
        "other ready": await client.is_model_ready(base, "other"),
    }
    await client.close()
    return {"answers": seen, "checks": checks}


if __name__ == "__main__":
    address = sys.argv[1]
    print(  # noqa: T201  # the output of this program
        json.dumps(
            {
                "tritonclient": run_sync(address),
                "tritonclient asyncio": asyncio.run(run_aio(address)),
                "kserve": asyncio.run(run_kserve(address)),
            }
        )
    )
