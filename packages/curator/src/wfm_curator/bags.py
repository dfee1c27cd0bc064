"""Read series of numbers from MCAP recordings (extra ``[mcap]``): each topic is one.

Messages in JSON are read as they are, those of ROS 2 and Protobuf with the decoder packages of
MCAP. Fields within fields get dotted names; text and pictures are no series and are left out.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .sidecar import SidecarError

DECODERS = {
    "cdr": ("mcap_ros2.decoder", "mcap-ros2-support"),
    "protobuf": ("mcap_protobuf.decoder", "mcap-protobuf-support"),
}

Series = tuple[np.ndarray, dict[str, np.ndarray]]  # seconds, and columns with a row for each
Decoder = Callable[[bytes], Any]


def read(path: Path, topics: Collection[str] = ()) -> dict[str, Series]:
    """Return the topics of a file by name, ``/arm/state`` as ``arm.state``; all, or some.

    Times are those of logging. Raises:
        ImportError: the extra is not installed.
        SidecarError: not MCAP, cut off, or a topic is not there or cannot be decoded.
    """
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
    except ImportError:
        raise ImportError(f'{path} needs: pip install "wfm-curator[mcap]"') from None
    rows: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    decoders: dict[int, Decoder] = {}
    try:
        with path.open("rb") as file:
            for schema, channel, message in make_reader(file).iter_messages(list(topics) or None):
                if channel.id not in decoders:
                    decoders[channel.id] = _decoder(path, schema, channel)
                value = decoders[channel.id](message.data)
                rows[channel.topic][message.log_time] = dict(_numbers(value))
    except (McapError, ValueError, EOFError) as e:
        if isinstance(e, SidecarError):
            raise
        raise SidecarError(f"{path}: not an MCAP file, or damaged ({e})") from e
    if missing := set(topics) - set(rows):
        raise SidecarError(f"{path}: no messages of {', '.join(sorted(missing))}")
    found = {
        topic.strip("/").replace("/", "."): _series(path, topic, r) for topic, r in rows.items()
    }
    return {name: series for name, series in found.items() if series[1]}


def _decoder(path: Path, schema: Any, channel: Any) -> Decoder:
    if channel.message_encoding == "json":
        return json.loads
    module, package = DECODERS.get(channel.message_encoding, ("", ""))
    where = f"{path}: {channel.topic} is {channel.message_encoding or 'in no encoding'}"
    if not module:
        raise SidecarError(f"{where}; name the other topics in rig.json: topics")
    try:
        factory = import_module(module).DecoderFactory()
    except ImportError:
        raise SidecarError(f"{where}: pip install {package}, or see rig.json: topics") from None
    decoder = factory.decoder_for(channel.message_encoding, schema)
    if decoder is None:
        raise SidecarError(f"{where} of a schema that {package} does not know")
    return decoder


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers of a message, and its arrays of them, with dotted names."""
    if isinstance(value, bool | int | float):
        yield name or "value", float(value)
    elif isinstance(value, str | bytes | bytearray | memoryview) or value is None:
        return
    elif hasattr(value, "__getitem__") and not isinstance(value, dict):
        try:
            yield name or "value", np.array(value, np.float64)
        except (TypeError, ValueError):  # of messages, or of text
            for number, part in enumerate(value):
                yield from _numbers(part, f"{name}.{number}" if name else str(number))
    else:
        for key, part in _fields(value):
            yield from _numbers(part, f"{name}.{key}" if name else key)


def _fields(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if hasattr(value, "DESCRIPTOR"):  # Protobuf
        return [(f.name, getattr(value, f.name)) for f in value.DESCRIPTOR.fields]
    return [(k, getattr(value, k)) for k in getattr(value, "__slots__", ())]


def _series(path: Path, topic: str, rows: dict[int, dict[str, Any]]) -> Series:
    times = sorted(rows)
    names = list(rows[times[0]])
    try:
        columns = {k: np.array([rows[t][k] for t in times], np.float64) for k in names}
    except (KeyError, ValueError) as e:
        raise SidecarError(f"{path}: messages of {topic} are not alike ({e})") from e
    return np.array(times) / 1e9, columns
