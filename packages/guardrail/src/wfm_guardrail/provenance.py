"""Say that a video was generated: a signed C2PA manifest, and a mark in the pixels."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import console
from .terminal import read, say

INSTALL = 'pip install "wfm-guardrail[c2pa]"'
_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def sign_file(
    source: str | Path,
    out: str | Path,
    *,
    certificate: bytes,
    key: bytes,
    algorithm: str = "es256",
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a copy of a media file with a C2PA manifest that declares it generated.

    ``certificate`` is a PEM chain, the leaf first; ``key`` its private key, PEM (PKCS #8).
    ``record`` goes into the manifest (a policy's fingerprint, a verdict). No network is used,
    so there is no trusted time stamp.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: c2pa-python is missing.
        ValueError: the file's format, the certificate or the key cannot be used.
    """
    from .videofile import replacing

    c2pa = _library()
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    action = {"action": "c2pa.created", "digitalSourceType": _GENERATED}
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions", "data": {"actions": [action]}}]
    if record:
        assertions.append({"label": "org.wfm.guardrail", "data": dict(record)})
    generator = {"name": "wfm-guardrail"}
    manifest = {"claim_generator_info": [generator], "assertions": assertions}
    manifest["title"] = Path(out).name
    try:
        info = c2pa.C2paSignerInfo(algorithm, certificate, key, None)
        with (
            replacing(out) as partial,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(manifest)) as builder,
        ):
            target = partial.with_name(partial.name + Path(source).suffix)
            try:
                builder.sign_file(str(source), str(target), signer)
                target.replace(partial)
            finally:
                target.unlink(missing_ok=True)
    except c2pa.C2paError as e:
        raise ValueError(f"{source}: could not be signed ({e})") from e


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """Return the state and the active manifest of a media file; None if it holds none.

    ``state`` is ``Trusted``, ``Valid`` (unbroken, signed by somebody unknown) or ``Invalid``;
    ``problems`` lists what failed.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: c2pa-python is missing.
    """
    c2pa = _library()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with c2pa.Reader(str(path)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError as e:
        if "ManifestNotFound" in type(e).__name__ + str(e):
            return None
        return {"state": "Invalid", "problems": [type(e).__name__], "manifest": None}
    active = found.get("manifests", {}).get(found.get("active_manifest"))
    status = found.get("validation_status") or []
    return {
        "state": found.get("validation_state", "Invalid"),
        "problems": [entry.get("code", "unknown") for entry in status],
        "manifest": active,
    }


def _library() -> Any:
    try:
        import c2pa  # ty: ignore[import-not-found]
    except ImportError as e:
        raise ImportError(f"signed manifests need: {INSTALL}") from e
    return c2pa


def add_commands(commands: Any) -> None:
    """Describe ``provenance sign`` and ``provenance verify``."""
    actions = commands.add_parser("provenance", help="mark videos as generated, and look for it")
    actions = actions.add_subparsers(dest="action", required=True, metavar="ACTION")

    command = actions.add_parser("sign", help="sign, and with --mark-key also mark the pixels")
    console.add_common(command, sign)
    command.add_argument("input", type=Path, metavar="VIDEO")
    command.add_argument("-o", "--out", type=Path, required=True, help="MP4 file to write")
    command.add_argument("--certificate", type=Path, help="PEM chain, the leaf first")
    command.add_argument("--key", type=Path, help="private key of the certificate, PEM")
    command.add_argument("--algorithm", default="es256", help="es256, ps256, ed25519 ... (es256)")
    command.add_argument("--mark-key", type=Path, help="file with the secret of the mark")
    command.add_argument("--payload", type=int, default=0, help="number of 32 bits to mark with")
    command.add_argument("--crf", type=int, default=12, help="x264 quality where marked (12)")

    command = actions.add_parser("verify", help="look for a manifest, and for the mark of a key")
    console.add_common(command, verify)
    command.add_argument("input", type=Path, metavar="VIDEO")
    command.add_argument("--mark-key", type=Path, help="file with the secret of the mark")


def sign(args: argparse.Namespace) -> int:
    """Mark, then sign: a manifest covers the bytes that it is put into."""
    from .videofile import replacing

    if bool(args.certificate) != bool(args.key):
        raise ValueError("--certificate and --key belong together")
    if not (args.key or args.mark_key):
        raise ValueError("nothing to do: give --certificate and --key, --mark-key, or all three")
    if args.out.resolve() == args.input.resolve():
        raise ValueError(f"{args.out}: is the input; name another file")
    pem = [read(path).encode() for path in (args.certificate, args.key) if path]
    with replacing(args.out) as partial:
        source = args.input
        if args.mark_key:
            source = partial.with_name(f"{partial.name}.mp4")
            _mark(args, source)
        try:
            if pem:
                sign_file(source, partial, certificate=pem[0], key=pem[1], algorithm=args.algorithm)
            else:
                source.replace(partial)
        finally:
            if source != args.input:
                source.unlink(missing_ok=True)
    record = {"out": str(args.out), "signed": bool(pem), "marked": bool(args.mark_key)}
    done = " and ".join(name for name in ("marked", "signed") if record[name])
    say(args, record, f"{args.out}: {done}")
    return console.DONE


def _mark(args: argparse.Namespace, out: Path) -> None:
    from . import videofile, watermark

    embedder = watermark.Embedder(args.payload, _secret(args.mark_key))
    rate = videofile.frame_rate(args.input) or 30.0
    chunks = (embedder.push(chunk) for chunk in videofile.read_chunks(args.input))
    count = videofile.write_chunks(out, chunks, rate, crf=args.crf)
    if count < watermark.LEAST_FRAMES:
        out.unlink()
        raise ValueError(f"{count} frames: a mark needs at least {watermark.LEAST_FRAMES}")


def verify(args: argparse.Namespace) -> int:
    """Print what was found; refused where a manifest is broken or nothing was found."""
    from . import videofile, watermark

    record: dict[str, Any] = {"input": str(args.input), "manifest": None, "mark": None}
    try:
        record["manifest"] = read_manifest(args.input)
    except ImportError:
        if not args.mark_key:
            raise
    if args.mark_key:
        detector = watermark.Detector(_secret(args.mark_key))
        for chunk in videofile.read_chunks(args.input):
            detector.push(chunk)
        mark = detector.finish()
        record["mark"] = {"found": mark.found, "payload": mark.payload, "score": mark.score}
    signed, mark = record["manifest"], record["mark"]
    state = signed["state"] if signed else "no manifest"
    text = f"{args.input}: {state}"
    if mark:
        text += f", mark {'of ' + str(mark['payload']) if mark['found'] else 'not'} found"
        text += f" (score {mark['score']:.1f})"
    say(args, record, text)
    marked = bool(mark and mark["found"])
    broken = bool(signed and signed["state"] == "Invalid")
    return console.DONE if (signed or marked) and not broken else console.REFUSED


def _secret(path: Path) -> bytes:
    return read(path).strip().encode()
