"""A tone begins where a scene does: after a cut it must begin at the clip's first sample."""

import av
import numpy as np
import pytest
from conftest import moving

import wfm_curator as wc

RATE = 16000


def talkie(path, *, seconds=(3, 3), late=0.0, codec="aac"):
    """A silent scene and one with a tone, in one file."""
    film = np.concatenate([moving(n, 10 * s) for n, s in enumerate(seconds)])
    seconds = seconds if len(seconds) == 2 else (seconds[0] - 1, 1)
    quiet, loud = (int(RATE * s) for s in seconds)
    tone = 0.5 * np.sin(np.arange(loud) * 2 * np.pi * 440 / RATE)
    sound = np.concatenate([np.zeros(quiet), tone]).astype(np.float32)[int(late * RATE) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=10)
        pictures.height, pictures.width, pictures.pix_fmt = 48, 64, "yuv420p"
        voice = out.add_stream(codec, rate=RATE, layout="mono")
        for picture in film:
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(pictures.encode(None))
        for start in range(0, len(sound), 1024):
            block = sound[None, start : start + 1024]
            if codec != "aac":
                block = (block * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, "fltp" if codec == "aac" else "s16", "mono")
            frame.sample_rate, frame.pts = RATE, start + int(late * RATE)
            out.mux(voice.encode(frame))
        out.mux(voice.encode(None))
    return path


def heard(data, path):
    """Return the sound of an mp4, one sample for each 1 / RATE s from its start."""
    path.write_bytes(data)
    found = np.zeros(0, np.float32)
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return found
        for frame in container.decode(audio=0):
            block = frame.to_ndarray().mean(0)
            begin = round(float(frame.pts * frame.time_base) * RATE)
            block = block[max(0, -begin) :]
            begin = max(0, begin)
            found = np.concatenate([found, np.zeros(max(0, begin - len(found)), np.float32)])
            found = np.concatenate([found[:begin], block])
    return found


def config(**groups):
    base = {"run": {"workers": 0}, "split": {"method": "content"}, "filter": {"min_side": 1}}
    return wc.CurateConfig.model_validate(base | groups)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_is_cut_with_the_pictures(tmp_path, name):
    talkie(tmp_path / "in" / name)
    wc.curate(tmp_path / "in", tmp_path / "out", config())
    quiet, loud = (
        heard(c.member("mp4"), tmp_path / "x.mp4") for c in wc.ShardedDataset(tmp_path / "out")
    )
    for sound in (quiet, loud):
        assert abs(len(sound) - 3 * RATE) <= 1024
    assert np.abs(quiet[: int(2.9 * RATE)]).max() < 0.02
    assert np.abs(loud[: int(0.05 * RATE)]).max() > 0.3
    power = [np.sqrt((loud[i : i + 800] ** 2).mean()) for i in range(0, int(2.9 * RATE), 800)]
    assert min(power) > 0.25


def test_sound_that_begins_late_stays_with_its_pictures(tmp_path):
    talkie(tmp_path / "in" / "a.mkv", late=3.5, codec="pcm_s16le")
    wc.curate(tmp_path / "in", tmp_path / "out", config())
    _, loud = (
        heard(c.member("mp4"), tmp_path / "x.mp4") for c in wc.ShardedDataset(tmp_path / "out")
    )
    begins = int(np.argmax(np.abs(loud) > 0.25)) / RATE
    assert begins == pytest.approx(0.5, abs=0.02)


def test_a_whole_file_with_sound_stays_untouched(tmp_path):
    path = talkie(tmp_path / "in" / "a.mp4", seconds=(3,))
    wc.curate(tmp_path / "in", tmp_path / "out", config(filter={"min_side": 1}))
    (clip,) = wc.ShardedDataset(tmp_path / "out")
    assert clip.member("mp4") == path.read_bytes()


def test_sound_is_left_out_when_asked(tmp_path):
    talkie(tmp_path / "in" / "a.mp4")
    wc.curate(tmp_path / "in", tmp_path / "out", config(shard={"audio": False}))
    for clip in wc.ShardedDataset(tmp_path / "out"):
        assert not len(heard(clip.member("mp4"), tmp_path / "x.mp4"))
        assert clip.read(0, 30).shape[0] == 30
