"""The server behind the page: one future per page, a frame at a time."""

import asyncio
import json
import statistics
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from torch import Tensor

from .interfaces import WorldModel
from .keys import Keys
from .steering import steer

HOSTS = ("127.0.0.1", "localhost")
AHEAD = 2  # pictures on their way to a page; a slow browser slows the world, and never lags behind
PAGE = Path(__file__).parent / "page" / "index.html"


class Player:
    """A future under way and how long its frames take.

    Raises:
        ValueError: the world model takes no actions, or other ones than the keys give.
    """

    def __init__(
        self, world: WorldModel, past: Float[Tensor, "1 3 p h w"], keys: Keys, seed: int = 0
    ) -> None:
        self.world, self.past, self.keys, self.seed = world, past, keys, seed
        self.recent: deque[float] = deque(maxlen=20)
        self.reset()

    def reset(self) -> None:
        """Begin anew from the first picture."""
        generator = torch.Generator().manual_seed(self.seed)
        self.future, self.frames = steer(self.world, self.past, generator), 0

    def step(self, action: list[float]) -> bytes:
        """Return the next frame: rows of RGB bytes."""
        began = time.perf_counter()
        try:
            frame = self.future.step({"action": torch.tensor([[action]], device=self.past.device)})
        except (ValueError, RuntimeError, KeyError) as e:
            raise ValueError(f"the world refused an action of {len(action)} numbers: {e}") from e
        pixels = ((frame[0, :, 0].float() + 1) * 127.5).round().clamp(0, 255).byte()
        data = pixels.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()
        self.recent.append(time.perf_counter() - began)
        self.frames += 1
        return data

    @property
    def milliseconds(self) -> float:
        """What a frame takes, the median of the last ones."""
        return 1000 * statistics.median(self.recent) if self.recent else 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.past.shape[-2], self.past.shape[-1]


def allowed(host: str | None, origin: str | None) -> bool:
    """Tell whether a request is of this machine's own page, and not of a site beyond.

    A page from elsewhere may reach 127.0.0.1 by its own name (rebinding), or open our socket.
    """
    if urlsplit(f"//{host}").hostname not in HOSTS:
        return False
    return origin is None or urlsplit(origin).netloc == host


def make_app(player: Player, *, fps: float, title: str = "") -> object:
    """Return the FastAPI application; ``fps`` is the most frames a second it will make.

    Raises:
        ImportError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
        from fastapi.responses import HTMLResponse, PlainTextResponse
    except ImportError as e:
        raise ImportError(f"wfm-ar play needs: pip install wfm-ar[play] ({e})") from e

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    in_use = asyncio.Lock()

    @app.get("/")
    async def page(request: Request) -> object:
        if not allowed(request.headers.get("host"), None):
            return PlainTextResponse("this page is for 127.0.0.1 only", status_code=403)
        height, width = player.size
        about = {
            "title": title, "height": height, "width": width,
            "keys": player.keys.about, "known": [*player.keys.hold, *player.keys.toggle],
        }  # fmt: skip
        text = PAGE.read_text(encoding="utf-8").replace("{{about}}", _embedded(about))
        return HTMLResponse(text, headers={"Cache-Control": "no-store"})

    @app.websocket("/play")
    async def play(socket: WebSocket) -> None:
        if not allowed(socket.headers.get("host"), socket.headers.get("origin")):
            await socket.close(code=1008)
            return
        await socket.accept()
        if in_use.locked():
            await socket.send_json({"error": "another page plays already; close it first"})
            await socket.close(code=1013)
            return
        async with in_use:
            held = _Held()
            listening = asyncio.create_task(_listen(socket, held, player))
            try:
                await _stream(socket, held, player, fps)
            except (WebSocketDisconnect, RuntimeError):
                pass  # the page was closed
            finally:
                listening.cancel()

    return app


class _Held:
    """What a page says: the keys held down and since when by its clock, pictures shown."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.toggled: list[str] = []
        self.at: float | None = None
        self.restart = True
        self.room = asyncio.Semaphore(AHEAD)
        self.gone = False


async def _listen(socket: object, held: _Held, player: Player) -> None:
    """Follow what the page says until it is gone."""
    from fastapi import WebSocketDisconnect

    try:
        while True:
            said = json.loads(await socket.receive_text())  # ty: ignore[missing-attribute]
            if said.get("shown"):
                held.room.release()
                continue
            held.keys = [str(key) for key in said.get("keys", [])]
            held.toggled = [str(key) for key in said.get("toggled", [])]
            held.at = said.get("at")
            held.restart = held.restart or bool(said.get("reset"))
    except (WebSocketDisconnect, json.JSONDecodeError, AttributeError, RuntimeError):
        held.gone = True
        held.room.release()


async def _stream(socket: object, held: _Held, player: Player, fps: float) -> None:
    """Send frame after frame until the page is gone."""
    while True:
        await held.room.acquire()
        if held.gone:
            return
        began = time.perf_counter()
        if held.restart:
            held.restart = False
            player.reset()
        action, at = player.keys.action(held.keys, held.toggled), held.at
        pixels = await asyncio.to_thread(player.step, action)
        took = round(player.milliseconds, 1)
        facts = {"frame": player.frames, "ms": took, "action": action, "at": at}
        await socket.send_text(json.dumps(facts))  # ty: ignore[missing-attribute]
        await socket.send_bytes(pixels)  # ty: ignore[missing-attribute]
        await asyncio.sleep(max(1 / fps - (time.perf_counter() - began), 0))


def _embedded(facts: Mapping[str, object]) -> str:
    """Write JSON that may stand in a script element."""
    return json.dumps(facts).replace("<", "\\u003c")


def serve(player: Player, *, port: int, fps: float, title: str) -> None:
    """Serve the page on 127.0.0.1 until interrupted.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
    """
    app = make_app(player, fps=fps, title=title)
    try:
        import uvicorn
        import websockets  # noqa: F401 - uvicorn takes no sockets without it
    except ImportError as e:
        raise ImportError(f"wfm-ar play needs: pip install wfm-ar[play] ({e})") from e
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")  # ty: ignore[invalid-argument-type]
