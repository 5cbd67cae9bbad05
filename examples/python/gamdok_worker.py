"""The worker's side of gamdok's report channel: one file, no dependencies, Python 3.9 or later.

A resident worker loads its model once and then takes items one after another::

    from gamdok_worker import serve

    model = load_model()

    def handle(item):
        text = model.transcribe(item.path)
        (item.out / "text.txt").write_text(text)
        return {"words": len(text.split())}      # any JSON: kept in result.json

    serve(handle)

Everything before ``serve`` runs once for each process. An exception fails the item and the worker is replaced before the
next attempt (a failure may have left it in a bad way); ``raise Refused("not audio")`` fails it for good, and the worker
goes on. ``print`` goes to the item's log.

For a big line file (``split`` and ``mode = "resident"`` on the route) the handler gets one batch of lines after another, and
returns or yields what stands for them::

    from gamdok_worker import serve_lines

    def handle(batch):
        for line in batch:                       # bytes, with their line end
            yield model.clean(line)              # bytes or text, written as it is

    serve_lines(handle)

A program of yours that uses gamdok's library (``Residents``) sends tasks instead of items, any JSON each::

    from gamdok_worker import serve_tasks

    serve_tasks(lambda task: model.embed(task["text"]))

In a one-shot command ``report()`` gives the same channel for progress, counters
and a result.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import traceback
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Union

__all__ = ["Channel", "Item", "Lines", "Refused", "report", "serve", "serve_batches", "serve_lines", "serve_tasks"]

#: The longest line of the channel, in bytes, without its newline.
MAX_LINE = 1 << 20
#: Only the end of a traceback matters to people.
MAX_ERROR = 12 << 10


class Refused(Exception):
    """The item can never succeed: no retry. The worker itself is well and takes the next one."""


class Channel:
    """fd 3: one JSON object a line, both ways. Its methods may be called from any thread."""

    def __init__(self, fd: Optional[int] = None) -> None:
        number = int(os.environ["GAMDOK_FD"]) if fd is None else fd
        self._socket = socket.socket(fileno=number)
        # Not for the processes that the worker starts: the channel ends with the worker.
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()
        self._partial = b""
        self._lines: List[bytes] = []

    def send(self, message: Dict[str, Any]) -> None:
        """Sends one message. Raises ValueError for what isn't JSON or is longer than 1 MiB."""
        line = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
        if len(line) > MAX_LINE:
            raise ValueError(f"a message of {len(line)} bytes; the longest is {MAX_LINE}: write large results into item.out")
        with self._lock:
            self._socket.sendall(line + b"\n")

    def ready(self, device_uuid: Optional[str] = None) -> None:
        """Says that items can come; with the UUID of the GPU in use, gamdok checks that it is the one it gave."""
        self.send({"type": "ready"} if device_uuid is None else {"type": "ready", "device_uuid": device_uuid})

    def done(self, item_id: str, result: Any = None) -> None:
        self.send({"type": "done", "id": item_id} if result is None else {"type": "done", "id": item_id, "result": result})

    def failed(self, item_id: str, error: str, retry: bool = True) -> None:
        self.send({"type": "failed", "id": item_id, "error": error[-MAX_ERROR:], "retry": retry})

    def progress(self, fraction: Optional[float] = None, message: Optional[str] = None, item_id: Optional[str] = None) -> None:
        """Shows how far it is: `fraction` from 0 to 1, a short `message`, or both."""
        known = {"type": "progress", "id": item_id, "fraction": fraction, "message": message}
        self.send({key: value for key, value in known.items() if value is not None})

    def count(self, name: str, by: float = 1) -> None:
        """Adds to a counter that is summed exactly over all workers.

        Over a batch of several items the sum stands with one of them: a count carries no id.
        """
        self.send({"type": "count", "name": name, "by": by})

    def heartbeat(self) -> None:
        """Says that the worker lives. One that has said so once is replaced after a minute of silence over an item."""
        self.send({"type": "heartbeat"})

    def receive(self) -> Optional[Dict[str, Any]]:
        """Waits for the next message; None once there is none to come."""
        while not self._lines:
            try:
                data = self._socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._lines = [line for line in reversed(lines) if line.strip()]
        return json.loads(self._lines.pop())


@dataclasses.dataclass(frozen=True)
class Item:
    """One item to work on. `path` is the file or directory, `out` an empty directory for results."""

    id: str
    path: pathlib.Path
    name: str
    out: pathlib.Path
    attempt: int
    channel: Channel = dataclasses.field(repr=False)

    def progress(self, fraction: Optional[float] = None, message: Optional[str] = None) -> None:
        self.channel.progress(fraction, message, self.id)

    def count(self, name: str, by: float = 1) -> None:
        self.channel.count(name, by)


@dataclasses.dataclass(frozen=True)
class Lines(Item):
    """A batch of a big line file's lines: iterating gives each as bytes, with its line end if it has one."""

    #: The number of its first line in the file, from 1.
    first_line: int
    #: How many lines it has.
    lines: int

    def __len__(self) -> int:
        return self.lines

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file


def report() -> Channel:
    """The channel of a one-shot command: progress, counters, and `done(os.environ["GAMDOK_ID"], result)`."""
    return Channel()


def serve(handler: Callable[[Item], Any], *, device_uuid: Optional[str] = None) -> None:
    """Takes items until gamdok says stop: `handler` gets one at a time and returns a result (JSON) or None."""

    def handle_batch(items: Sequence[Item], channel: Channel) -> None:
        for item in items:
            try:
                answer = handler(item)
            except Exception as error:
                _fail(channel, item.id, error)
            else:
                _done(channel, item.id, answer)

    _serve(handle_batch, device_uuid)


def serve_batches(handler: Callable[[List[Item]], Sequence[Any]], *, device_uuid: Optional[str] = None) -> None:
    """Takes whole batches (`batch = { max_items = … }`): `handler` gets a list of items and returns as many results.

    A result that is an exception fails its item alone. An exception out of `handler` ends the process: gamdok then tries
    halves of the batch until the item that caused it stands alone.
    """

    def handle_batch(items: Sequence[Item], channel: Channel) -> None:
        answers = handler(list(items))
        if len(answers) != len(items):
            raise ValueError(f"{len(answers)} results for {len(items)} items")
        for item, answer in zip(items, answers):
            if isinstance(answer, Exception):
                _fail(channel, item.id, answer)
            else:
                _done(channel, item.id, answer)

    _serve(handle_batch, device_uuid)


def serve_lines(handler: Callable[[Lines], Iterable[Union[bytes, str]]], *, device_uuid: Optional[str] = None) -> None:
    """Takes batches of a big line file (`split`): `handler` gets one and returns or yields what stands for it in the output.

    Pieces are written one after another as they are, text as UTF-8: line ends are the handler's. None stands for nothing.
    An exception fails the batch, which is tried again by a new worker; after `Refused` it isn't.
    """

    def handle(item: Item) -> None:
        if not isinstance(item, Lines):
            raise Refused("this worker takes batches of lines: its route needs `split`")
        with (item.out / "part").open("wb") as part:
            for piece in handler(item) or ():
                part.write(piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogateescape"))

    serve(handle, device_uuid=device_uuid)


def serve_tasks(handler: Callable[[Any], Any], *, device_uuid: Optional[str] = None) -> None:
    """Takes tasks of a program that uses gamdok's library: `handler` gets one task (any JSON) at a time and returns its answer."""

    def handle_batch(tasks: Sequence[Dict[str, Any]], channel: Channel) -> None:
        for task in tasks:
            try:
                answer = handler(task["task"])
            except Exception as error:
                _fail(channel, task["id"], error)
            else:
                _done(channel, task["id"], answer)

    _serve(handle_batch, device_uuid, lambda message, _channel: message["items"])


def _done(channel: Channel, item_id: str, answer: Any) -> None:
    try:
        channel.done(item_id, answer)
    except (TypeError, ValueError) as error:
        channel.failed(item_id, f"its result can't be sent: {error}", retry=False)


def _fail(channel: Channel, item_id: str, error: BaseException) -> None:
    sys.stderr.write("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    # On disk before the answer: what was printed until then is the item's log.
    _flush()
    channel.failed(item_id, f"{type(error).__name__}: {error}", retry=not isinstance(error, Refused))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _items(message: Dict[str, Any], channel: Channel) -> List[Item]:
    def make(it: Dict[str, Any]) -> Item:
        item = (it["id"], pathlib.Path(it["item"]), it["name"], pathlib.Path(it["out"]), it["attempt"], channel)
        return Lines(*item, it["first_line"], it["lines"]) if "first_line" in it else Item(*item)

    return [make(it) for it in message["items"]]


def _messages(channel: Channel) -> Iterator[Dict[str, Any]]:
    while True:
        message = channel.receive()
        if message is None or message.get("type") == "stop":
            return
        yield message


def _serve(
    handle_batch: Callable[[Sequence[Any], Channel], None],
    device_uuid: Optional[str],
    read: Callable[[Dict[str, Any], Channel], Sequence[Any]] = _items,
) -> None:
    if "GAMDOK_FD" not in os.environ:
        raise SystemExit("this is a resident worker of gamdok: run it by a route with mode = \"resident\"")
    channel = Channel()
    # SIGTERM ends it between two items where it can: the default would cut an item in the middle.
    waiting = threading.Event()
    stopping = threading.Event()

    def stop(_signal: int, _frame: Any) -> None:
        stopping.set()
        if waiting.is_set():
            raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    # A line at a time, so that what was printed lies in the log when the item is answered.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    channel.ready(device_uuid)
    waiting.set()
    for message in _messages(channel):
        if message.get("type") != "items":
            continue
        waiting.clear()
        handle_batch(read(message, channel), channel)
        waiting.set()
        if stopping.is_set():
            return
