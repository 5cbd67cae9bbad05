"""A bare resident worker on fd 3, for the tests: what an item says decides what becomes of it."""

import json
import os
import sys
import time

at = os.environ["AT"]
channel = os.fdopen(int(os.environ["GAMDOK_FD"]), "rb+", buffering=0)


def say(**message):
    channel.write(json.dumps(message).encode() + b"\n")


def did(what, id):
    """Does what the word says, where it is one that all of these workers know."""
    if what == "nonsense":
        channel.write(b"hello\n")
    elif what == "stranger":
        say(type="done", id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    elif what == "leave":
        sys.exit(0)
    elif what == "crash":
        os.kill(os.getpid(), 11)
    elif what == "fail":
        say(type="failed", id=id, error="cannot do that")
    elif what == "refuse":
        say(type="failed", id=id, error="not a word", retry=False)
    elif what == "last":
        say(type="done", id=id)
        sys.exit(0)
    elif what == "unknown":
        say(type="weather", sky="blue")
        say(type="done", id=id)
    else:
        return False
    return True


def serve(take):
    """Writes its number down, and gives the items of each message to `take`. Counts that it was told to stop."""
    with open(at + "/processes", "a") as processes:
        processes.write(f"{os.getpid()}\n")
    if os.path.exists(at + "/never"):
        time.sleep(600)
    if os.path.exists(at + "/exits"):
        print("no model here", file=sys.stderr)
        sys.exit(3)
    say(type="ready")
    rest = b""
    while data := channel.read(65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["type"] == "stop":
                say(type="count", name="stops", by=1)
                sys.exit(0)
            take(message["items"])
