"""Render the demo workflow in a real, headless ComfyUI, as any client of its HTTP API would.

make demo        or        .host/venv/bin/python demo/run.py --prompt "red apple" --steps 8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from host import SetupError, server, setup  # noqa: E402
from workflow import to_prompt  # noqa: E402

WORKFLOW = ROOT / "workflows" / "Few-Step demo (no download).json"
OUTPUT = ROOT / "output"


def change(graph: dict, class_type: str, **inputs) -> None:
    """Set inputs of the nodes of a type, as an artist would in the graph."""
    for node in graph.values():
        if node["class_type"] == class_type:
            node["inputs"] |= {name: value for name, value in inputs.items() if value is not None}


def refusal(body: dict) -> str:
    """The host's reasons for refusing a prompt, in a line each."""
    reasons = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in (body.get("node_errors") or {}).values()
        for error in node["errors"]
    ]
    return "\n".join(reasons) or body["error"]["message"]


async def run(url: str, prompt: dict) -> list[str]:
    """Queue the prompt, show its progress, and return the names of the images that were saved.

    Raises:
        SetupError: with the host's own message if it refuses the prompt or fails while running it.
    """
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession(url) as session, session.ws_connect(f"/ws?clientId={client}") as events:
        async with session.post("/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            body = await answer.json()
            if answer.status != 200:
                raise SetupError(f"ComfyUI refused the workflow: {refusal(body)}")
        async for message in events:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue  # a preview image
            event = message.json()
            data = event["data"]
            if event["type"] == "progress":
                print(f"\r  step {data['value']}/{data['max']}", end="", flush=True)
            elif event["type"] == "execution_error":
                raise SetupError(f"{data['node_type']} failed: {data['exception_message']}")
            elif event["type"] == "executing" and data["node"] is None and data["prompt_id"] == body["prompt_id"]:
                break
        print()
        async with session.get(f"/history/{body['prompt_id']}") as answer:
            outputs = (await answer.json())[body["prompt_id"]]["outputs"]
    return [image["filename"] for output in outputs.values() for image in output.get("images", [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", help="a few words: smileys, animals, food")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sampler")
    parser.add_argument("--schedule")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        setup()
        print("starting ComfyUI ...", flush=True)
        OUTPUT.mkdir(exist_ok=True)
        with server(None, "--output-directory", str(OUTPUT)) as host:
            prompt = to_prompt(json.loads(WORKFLOW.read_text()), host.get("/object_info"))
            change(prompt, "FewStepDemoModel", prompt=options.prompt)
            change(prompt, "FewStepScheduler", steps=options.steps, schedule=options.schedule)
            change(prompt, "FewStepSampler", sampler=options.sampler)
            change(prompt, "SamplerCustom", noise_seed=options.seed)
            print(f"rendering {WORKFLOW.relative_to(ROOT)} ...", flush=True)
            for image in asyncio.run(run(host.url, prompt)):
                print(f"image: {(OUTPUT / image).relative_to(ROOT)}")
    except SetupError as error:
        sys.exit(f"the demo failed: {error}")
    except aiohttp.ClientError as error:
        sys.exit(f"the demo failed: ComfyUI stopped answering ({error}); see .host/server.log")
    except KeyboardInterrupt:
        sys.exit("stopped")
    print(f"done in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
