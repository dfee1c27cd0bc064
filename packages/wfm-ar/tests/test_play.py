"""Steering a world from a page, up to a real browser where one is installed."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fakes import Lamp, moving_square, pushed

from wfm_ar.cli import main
from wfm_ar.keys import ARM, Keys
from wfm_ar.play import AHEAD, Player, allowed, make_app
from wfm_ar.steering import steer

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
GREY = torch.zeros(1, 3, 1, 8, 8)


def test_keys_add_up():
    keys = Keys(hold={"w": (1.0, 0.0), "d": (0.5, 1.0)}, toggle={" ": (0.0, 4.0)})
    assert keys.action([], []) == [0.0, 0.0]
    assert keys.action(["d", "w", "w", "x"], []) == [1.5, 1.0]
    assert keys.action(["w"], [" ", "w"]) == [1.0, 4.0]
    assert (ARM.size, keys.size) == (7, 2)
    assert ARM.action(["w", "s"], []) == [0.0] * 7
    with pytest.raises(ValueError, match=r"one length, got lengths \[1, 2\]"):
        Keys(hold={"w": (1.0,), "s": (1.0, 2.0)})


def test_steps_are_the_frames_of_one_rollout():
    world, past = pushed(), moving_square(3)
    action = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0)) * 3
    whole = world.rollout(past, frames=4, controls={"action": action})
    future = steer(world, past)
    steps = [future.step({"action": action[:, i : i + 1]}) for i in range(4)]
    assert torch.equal(torch.cat(steps, 2), whole)


def test_any_world_is_steered_from_its_own_frames():
    future = steer(Lamp(), GREY)
    up, down = ({"action": torch.tensor([[[x, *[0.0] * 6]]])} for x in (1.0, -1.0))
    levels = [future.step(x)[0, 0, 0, 0, 0].item() for x in (up, up, down)]
    assert levels == pytest.approx([0.2, 0.4, 0.2])


def test_a_player_gives_pixels_and_begins_anew():
    player = Player(Lamp(), GREY, ARM)
    bright = player.step([1.0] + [0.0] * 6)
    assert len(bright) == 8 * 8 * 3
    assert set(bright) == {153}
    assert player.step([1.0] + [0.0] * 6) > bright
    assert player.milliseconds > 0
    player.reset()
    assert player.step([1.0] + [0.0] * 6) == bright
    with pytest.raises(ValueError, match="the world refused an action of 2 numbers"):
        player.step([0.0, 0.0])


def test_only_this_machine_may_play():
    assert allowed("127.0.0.1:8000", "http://127.0.0.1:8000")
    assert allowed("localhost:8000", None)
    assert not allowed("evil.example:8000", None)
    assert not allowed(None, None)
    assert not allowed("127.0.0.1:8000", "http://evil.example")
    assert not allowed("127.0.0.1:8000", "http://127.0.0.1:9000")


@pytest.mark.filterwarnings("ignore")  # the client's, not ours
def test_the_page_and_its_frames():
    from fastapi.testclient import TestClient
    from starlette.websockets import WebSocketDisconnect

    app = make_app(Player(Lamp(), GREY, ARM), fps=200.0, title="a </script> lamp")
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    page = client.get("/")
    assert page.status_code == 200
    assert "a \\u003c/script> lamp" in page.text
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    here = {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}
    with client.websocket_connect("/play", headers=here) as ws:
        for _ in range(AHEAD):
            facts, pixels = json.loads(ws.receive_text()), ws.receive_bytes()
            assert facts["at"] is None
            assert set(pixels) == {128}
        # No further picture was made before one is shown, so the next answers to the keys.
        ws.send_text(json.dumps({"keys": ["w"], "toggled": [" "], "at": 12.5}))
        ws.send_text(json.dumps({"shown": True}))
        facts, pixels = json.loads(ws.receive_text()), ws.receive_bytes()
        assert facts["at"] == 12.5
        assert facts["frame"] == AHEAD + 1
        assert facts["action"] == [0.9, 0, 0, 0, 0, 0, 1.0]
        assert min(pixels) > 128
        with client.websocket_connect("/play", headers=here) as second:
            assert "another page plays" in second.receive_json()["error"]
    away = here | {"origin": "http://evil.example"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/play", headers=away) as ws:
        ws.receive_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--world", "fakes:lamp"], "--world fakes:lamp needs --start FILE"),
        (["--world", "fakes:codec", "--start", "x.png"], "not a world model"),
        (["--world", "nothing", "--start", "x.png"], "nothing: no such name in wfm.world_models"),
        (["--world", "fakes:lamp", "--start", "x.png"], "x.png: no such file"),
        (["--fps", "0"], "--fps must be above 0"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert main(["play", *arguments]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_default_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("wfm_ar.references.entry_points", lambda group: [])
    assert main(["play"]) == 2
    assert "pip install wfm-posttrain" in capsys.readouterr().err


def test_keys_of_another_length_are_refused_before_serving(tmp_path, capsys):
    (tmp_path / "keys.yaml").write_text("hold: {w: [1, 0]}")
    start = Path(__file__).parent.parent / "src/wfm_ar/page/arm.mp4"
    if not start.is_file():
        pytest.skip("vendored elsewhere")
    arguments = [
        "--world",
        "fakes:lamp",
        "--start",
        str(start),
        "--keys",
        str(tmp_path / "keys.yaml"),
    ]
    assert main(["play", *arguments]) == 2
    assert "refused an action of 2 numbers" in capsys.readouterr().err


@contextmanager
def browsing(url, folder):
    """Open a page in a headless Chromium."""
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--remote-debugging-port=0", f"--user-data-dir={folder}",
            "--window-size=900,640", url,
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def target():
        port = (Path(folder) / "DevToolsActivePort").read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [x for x in json.load(answer) if x["type"] == "page"]
        return pages[0]["webSocketDebuggerUrl"]

    try:
        with connect(wait(target), max_size=None) as link:
            yield Browser(link)
    finally:
        process.terminate()
        process.wait(60)


class Browser:
    """A page of Chromium, spoken to by its debugging protocol."""

    def __init__(self, link):
        self.link, self.count = link, 0

    def call(self, method, **params):
        self.count += 1
        self.link.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (answer := json.loads(self.link.recv(timeout=120))).get("id") != self.count:
            pass
        return answer["result"]

    def ask(self, expression):
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def key(self, kind, key):
        code = {"key": key, "text": key} if kind == "keyDown" else {"key": key}
        self.call("Input.dispatchKeyEvent", type=kind, **code)

    def picture(self, file):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))


def is_there(url):
    with urllib.request.urlopen(url) as answer:
        return answer.status == 200


def wait(found, seconds=120):
    """Ask again and again until there is an answer."""
    until = time.monotonic() + seconds
    while True:
        try:
            if answer := found():
                return answer
        except (OSError, IndexError, ValueError):
            pass
        if time.monotonic() > until:
            raise TimeoutError("no answer")
        time.sleep(0.1)


MIDDLE = "view.getContext('2d').getImageData(view.width / 2, view.height / 2, 1, 1).data[0]"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_person_steers_in_a_browser(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = Path(__file__).parent.parent / "src/wfm_ar/page/arm.mp4"
    command = [sys.executable, "-m", "wfm_ar.cli", "play", "--world", "fakes:lamp"]
    command += ["--start", str(start), "--port", str(port), "--fps", "20"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        url = json.loads(server.stdout.readline())["url"]
        wait(lambda: is_there(url))
        with browsing(url, tmp_path / "profile") as browser:
            wait(lambda: int(browser.ask("document.body?.dataset.frame") or 0) > 3)
            before = browser.ask(MIDDLE)
            browser.picture(tmp_path / "before.png")
            browser.key("keyDown", "w")
            wait(lambda: browser.ask(MIDDLE) > before + 20)
            browser.key("keyUp", "w")
            browser.key("keyDown", "s")
            bright = browser.ask(MIDDLE)
            wait(lambda: browser.ask(MIDDLE) < bright - 20)
            browser.key("keyUp", "s")
            browser.picture(tmp_path / "after.png")
            said = browser.ask("document.getElementById('state').textContent")
            assert re.search(r"ms to imagine one, \d+ ms from key to picture", said)
            assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()
