#!/usr/bin/env python3
"""embed.py as a resident worker: PyTorch, its CUDA context and the projection are loaded once for each GPU slot.

    [[route]]
    name = "embed"
    mode = "resident"
    cwd = "examples/pytorch"
    command = ["python3", "embed_resident.py", "--device", "{device}"]
    gpu_memory = "1GiB"
    timeout = "10m"                 # for each item
    outputs = ["embedding.json"]

By hand, without gamdok, `python3 embed_resident.py --device cpu --try FILE` embeds one file.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

import embed
from gamdok_worker import Item, serve


def uuid_of(device, torch):
    """The GPU that CUDA really uses, as NVML names it; gamdok holds it against the one it gave."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Embed files, one after another, on one device.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--try", dest="file", type=pathlib.Path)
    args = parser.parse_args()
    import torch

    device = torch.device(args.device)
    if args.file is not None:
        vector, frames = embed.embed(args.file, device, torch)
        print(json.dumps({"frames": frames, "embedding": vector}))
        return 0
    # A first pass pays for the context and the kernels before any item does.
    embed.embed(pathlib.Path(__file__), device, torch)

    def handle(item: Item) -> dict:
        # It tells its progress on the channel, too: with one item in hand there is no doubt for which.
        vector, frames = embed.embed(item.path, device, torch)
        (item.out / "embedding.json").write_text(json.dumps({"frames": frames, "embedding": vector}) + "\n")
        return {"device": str(device), "frames": frames}

    serve(handle, device_uuid=uuid_of(device, torch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
