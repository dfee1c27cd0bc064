import json

import numpy as np
import pytest
from conftest import moving, numbered, write
from hypothesis import given
from hypothesis import strategies as st
from vlm_server import serving

import wfm_curator as wc
from wfm_curator.analysis import analyse, span
from wfm_curator.captioning import Clip, caption_clips, pictures, windows
from wfm_curator.cli import main
from wfm_curator.config import CaptionConfig
from wfm_curator.vlm import Endpoint, EndpointError


@pytest.fixture
def clip(tmp_path):
    path = write(tmp_path / "film.mp4", numbered(60), fps=10)
    facts = analyse(path).facts()
    return Clip("film", path, span(facts["clips"][0], exact=True), 10.0)


def asked(url, **options):
    slept = []
    endpoint = Endpoint(CaptionConfig(endpoint=url, **options), sleep=slept.append)
    endpoint.probe()
    return endpoint, slept


@given(st.integers(1, 2000), st.floats(1, 60), st.floats(0.1, 30))
def test_windows_hold_every_frame_once(frames, fps, seconds):
    found = windows(frames, fps, seconds)
    assert [a for a, _ in found] + [frames] == [0] + [b for _, b in found]
    size = max(1, round(seconds * fps))
    assert all(b - a <= 1.5 * size for a, b in found)
    assert len(found) == 1 or all(b - a >= size / 2 for a, b in found)


def test_pictures_are_spread_over_the_window(clip):
    from conftest import number_of
    from cv2 import IMREAD_COLOR, imdecode

    for limits, wanted in (((0, 60), [7, 22, 37, 52]), ((20, 24), [20, 21, 22, 23])):
        jpegs = pictures(clip, limits, CaptionConfig(frames=4))
        found = [imdecode(np.frombuffer(j, np.uint8), IMREAD_COLOR) for j in jpegs]
        assert [number_of(p) for p in found] == wanted


def test_a_long_clip_is_captioned_in_windows(clip):
    with serving() as (server, url):
        endpoint, _ = asked(url, window_seconds=2.5, frames=5)
        (found,) = caption_clips([clip], endpoint).values()
    assert [(w.start, w.stop) for w in found] == [(0, 25), (25, 60)]
    assert {w.answer.status for w in found} == {"ok"}
    assert found[0].answer.text.startswith("5 pictures, brightness ")
    texts = [r["messages"][0]["content"][-1]["text"] for r in server.requests]
    assert any("at 0.2, 0.8, 1.2, 1.8, 2.2 seconds" in t for t in texts)
    assert endpoint.spent == 200


@pytest.mark.parametrize("fault", [429, 500, 503, "hang up", "slow"])
def test_what_may_pass_is_tried_again(clip, fault):
    with serving([fault, fault]) as (server, url):
        endpoint, slept = asked(url, timeout=0.3 if fault == "slow" else 30.0, retries=3)
        (found,) = caption_clips([clip], endpoint).values()
    assert found[0].answer.status == "ok"
    assert len(server.requests) == 3
    assert len(slept) == 2


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (400, "error", "HTTP 400"),
        (401, "error", "HTTP 401"),
        (404, "error", "as told"),
        ("garbage", "error", "not JSON"),
        ("odd", "error", "no chat completion"),
        ("empty", "error", "empty"),
        ("long", "truncated", ""),
        ("filtered", "blocked", ""),
    ],
)
def test_what_will_not_pass_is_asked_once(clip, fault, status, words):
    with serving([fault]) as (server, url):
        endpoint, slept = asked(url)
        (found,) = caption_clips([clip], endpoint).values()
    assert found[0].answer.status == status
    assert words in found[0].answer.error
    assert len(server.requests) == 1
    assert not slept


def test_it_gives_up_after_the_retries_and_only_on_that_window(clip):
    with serving([503] * 3) as (_, url):
        endpoint, slept = asked(url, retries=2, window_seconds=3, concurrency=1)
        (found,) = caption_clips([clip], endpoint).values()
    assert [w.answer.status for w in found] == ["error", "ok"]
    assert "HTTP 503" in found[0].answer.error
    assert "3 times" in found[0].answer.error
    assert len(slept) == 2


def test_no_more_requests_at_a_time_than_allowed(clip):
    with serving(delay=0.05) as (server, url):
        endpoint, _ = asked(url, window_seconds=0.5, frames=1, concurrency=3)
        (found,) = caption_clips([clip], endpoint).values()
    assert len(found) == 12
    assert 1 < server.busiest <= 3


def test_the_budget_ends_the_asking(clip):
    with serving() as (server, url):
        endpoint, _ = asked(url, window_seconds=1, concurrency=1, budget_tokens=250)
        (found,) = caption_clips([clip], endpoint).values()
    assert [w.answer.status for w in found] == ["ok"] * 3 + ["skipped"] * 3
    assert len(server.requests) == 3


def test_the_key_is_sent_and_a_server_that_is_not_there_is_named(clip, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving() as (server, url):
        endpoint, _ = asked(url, key_variable="MY_KEY")
        caption_clips([clip], endpoint)
        assert server.requests[0]["key"] == "Bearer secret"
        with pytest.raises(EndpointError, match=r"no model 'large', it serves: tiny-vlm"):
            asked(url, model="large")
    with pytest.raises(EndpointError, match=r"no model answers \(.*refused"):
        asked(url, retries=0)


def settings(url, **caption):
    groups = {"run": {"workers": 0}, "split": {"method": "content"}}
    return wc.CurateConfig.model_validate(groups | {"caption": {"endpoint": url} | caption})


def test_a_run_asks_once_and_keeps_what_was_said(folder, tmp_path):
    (folder / "sim-0.txt").write_text("from its side-car")
    with serving() as (server, url):
        report = wc.curate(folder, tmp_path / "out", settings(url))
        assert len(server.requests) == 5
        before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        wc.curate(folder, tmp_path / "out", settings(url))
        assert len(server.requests) == 5
        again = wc.curate(folder, tmp_path / "out", settings(url, prompt="What moves?"))
        assert len(server.requests) == 10
        wc.curate(folder, tmp_path / "out", settings(url))
        assert len(server.requests) == 10
    assert {p: p.read_bytes() for p in before if p.name != "ledger.sqlite"} == {
        p: data for p, data in before.items() if p.name != "ledger.sqlite"
    }
    assert report.captions == again.captions == {"model tiny-vlm": 5, "text": 1}
    clip = next(c for c in wc.ShardedDataset(tmp_path / "out") if "pictures" in c.caption)
    (window,) = json.loads(clip.member("json"))["curation"]["caption_windows"]
    assert (window["start"], window["stop"], window["status"]) == (0, 17, "ok")
    assert window["text"] == clip.caption


def test_clips_that_no_model_answers_for_keep_their_description(folder, tmp_path):
    with serving([400, 400]) as (server, url):
        report = wc.curate(folder, tmp_path / "out", settings(url, concurrency=1))
        assert report.captions == {"described": 2, "model tiny-vlm": 4}
        report = wc.curate(folder, tmp_path / "out", settings(url))  # asks again for those alone
        assert report.captions == {"model tiny-vlm": 6}
        assert len(server.requests) == 8


def test_the_command_asks_the_model_too(tmp_path, capsys):
    path = str(write(tmp_path / "a.mp4", moving(0, 20)))
    with serving(["long"]) as (_, url):
        arguments = ["caption", path, "--set", f"caption.endpoint={url}"]
        assert main([*arguments, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row["caption_source"] == "model tiny-vlm"
        assert row["windows"][0]["status"] == "truncated"
        assert main(arguments) == 0
        assert "8 pictures" in capsys.readouterr().out
    assert main([*arguments, "--set", "caption.retries=0"]) == 2
    assert "see caption.endpoint" in capsys.readouterr().err
