#!/usr/bin/env python3
"""Turns any file into a small vector on the device it is given: the shape of a real PyTorch worker.

    python3 embed.py ITEM --out OUT --device cuda:0

The bytes are cut into frames, each frame's spectrum goes through a fixed random projection (no download, the same on
every host), and the mean over all frames is written to OUT/embedding.json. A route for it:

    [[route]]
    name = "embed"
    cwd = "examples/pytorch"
    command = ["python3", "embed.py", "{item}", "--out", "{out}", "--device", "{device}"]
    gpu_memory = "1GiB"
    timeout = "10m"
    outputs = ["embedding.json"]
"""

import argparse
import json
import os
import sys
from pathlib import Path

FRAME = 1024  # bytes
BATCH = 4096  # frames on the device at a time: memory stays bounded, whatever the file's size
SIZE = 64  # numbers in the result

# gamdok's reading of these: 65 is final, no retry helps; 75 is "try later", which isn't held against the item.
EX_DATAERR = 65
EX_TEMPFAIL = 75


def report(**message):
    """Tells gamdok how far it is. By hand, without gamdok, there is no channel and nothing is sent."""
    fd = os.environ.get("GAMDOK_FD")
    if fd is not None:
        try:
            os.write(int(fd), (json.dumps(message) + "\n").encode())
        except OSError:
            pass  # Progress is a courtesy: a director that went away is no reason to fail.


def frames(path, torch):
    """The file as batches of frames with values from -1 to 1; the last frame is filled up with silence."""
    with open(path, "rb") as file:
        while data := file.read(FRAME * BATCH):
            data += bytes([128]) * (-len(data) % FRAME)
            yield torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, FRAME).float().sub(128).div(128)


def embed(path, device, torch):
    generator = torch.Generator().manual_seed(1)
    bins = FRAME // 2 + 1
    projection = (torch.randn(bins, SIZE, generator=generator) / bins**0.5).to(device)
    window = torch.hann_window(FRAME, device=device)
    total, count, size = torch.zeros(SIZE, device=device), 0, max(path.stat().st_size, 1)
    for batch in frames(path, torch):
        spectrum = torch.fft.rfft(batch.to(device) * window).abs().log1p()
        total += (spectrum @ projection).tanh().sum(dim=0)
        count += len(batch)
        report(type="progress", fraction=min(count * FRAME / size, 1.0))
    return (total / max(count, 1)).cpu().tolist(), count


def main():
    options = argparse.ArgumentParser(description="Turns any file into a small vector on the given device.")
    options.add_argument("item", type=Path)
    options.add_argument("--out", type=Path, default=Path(os.environ.get("GAMDOK_OUT", ".")))
    options.add_argument("--device", default=os.environ.get("GAMDOK_DEVICE", "cpu"))
    given = options.parse_args()

    try:
        import torch
    except ImportError:
        sys.stderr.write(
            f"PyTorch isn't installed for {sys.executable}.\n"
            "Install it there (https://pytorch.org/get-started/locally/), or name another interpreter in the route:\n"
            '    command = ["/path/to/venv/bin/python", "embed.py", ...]\n'
        )
        return EX_DATAERR

    device = torch.device(given.device.split(",")[0])
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(f"{device} was given, but PyTorch {torch.__version__} sees no GPU: is this its CPU build?\n")
        return EX_TEMPFAIL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"embedding {given.item.name!r} on {device} ({name})", flush=True)

    vector, count = embed(given.item, device, torch)
    # Written whole or not at all: a killed attempt leaves no half file that looks like a result.
    result = {"item": given.item.name, "device": str(device), "name": name, "frames": count, "embedding": vector}
    partial = given.out / "embedding.json.tmp"
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=True) + "\n")
    partial.rename(given.out / "embedding.json")
    report(type="done", id=os.environ.get("GAMDOK_ID", ""), result={"device": name, "frames": count})
    return 0


if __name__ == "__main__":
    sys.exit(main())
