from contextlib import suppress

import av
import numpy as np
import pytest
from conftest import moving, number_of, numbered, write

from wfm_curator.analysis import info_from
from wfm_curator.scan import scan
from wfm_curator.video import Span, VideoError, Writer, copy_stream, cut, read_frames

JITTER = np.random.default_rng(0).integers(-3, 4, 90)


def span_of(seen, start, stop):
    end = int(seen.pts[stop]) if stop < len(seen) else None
    return Span(start, stop, int(seen.pts[start]), end, seen.exact)


def numbers(path):
    with av.open(str(path)) as container:
        return [number_of(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant.mp4", {"fps": 25}),
        ("ntsc.mp4", {"fps": 29.97}),
        ("b-frames.mp4", {"fps": 25, "bf": "3", "g": "40", "preset": "fast"}),
        ("milliseconds.mkv", {"fps": 29.97}),
        ("jittered.mp4", {"times": np.arange(90) * 40 + 5 + JITTER}),
        ("varying.mp4", {"times": np.cumsum(np.random.default_rng(1).integers(20, 90, 90))}),
        ("old.avi", {"fps": 25, "codec": "mpeg4"}),
    ],
)
def test_cuts_are_exact_to_the_frame(tmp_path, name, options):
    path = write(tmp_path / name, numbered(90), **options)
    seen = scan(path)
    spans = [span_of(seen, *limits) for limits in ((13, 30), (30, 31), (47, 90))]
    outputs = [tmp_path / f"{n}.mp4" for n in range(3)]
    cut(path, spans, outputs, Writer(seen.info))
    assert [numbers(p) for p in outputs] == [list(range(s.start, s.stop)) for s in spans]


def test_a_cut_clip_keeps_its_rate_to_the_last_frame(tmp_path):
    path = write(tmp_path / "film.mp4", numbered(60), fps=29.97)
    seen = scan(path)
    cut(path, [span_of(seen, 10, 27)], [tmp_path / "clip.mp4"], Writer(seen.info))
    clip = scan(tmp_path / "clip.mp4")
    assert clip.info.rate == seen.info.rate
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == pytest.approx(29.97, rel=1e-3)


def test_a_varying_rate_is_kept_as_it_is(tmp_path):
    times = np.cumsum(np.random.default_rng(1).integers(20, 90, 60))
    path = write(tmp_path / "film.mp4", numbered(60), times=times)
    seen = scan(path)
    assert seen.info.rate is None
    cut(path, [span_of(seen, 20, 50)], [tmp_path / "clip.mp4"], Writer(seen.info))
    clip = scan(tmp_path / "clip.mp4")
    np.testing.assert_allclose(np.diff(clip.times), np.diff(times[20:50]) / 1000, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 65), (51, 70), (64, 16)])
def test_cuts_keep_every_size(tmp_path, height, width):
    path = write(tmp_path / "film.mkv", moving(0, 12, height, width), pixels="yuv444p")
    seen = scan(path)
    cut(path, [span_of(seen, 3, 9)], [tmp_path / "clip.mp4"], Writer(seen.info))
    before, after = read_frames(path, 3, 9, 12), read_frames(tmp_path / "clip.mp4", 0, 6, 6)
    assert after.shape == (6, height, width, 3)
    assert np.abs(before.astype(int) - after).mean() < 4


def test_a_turned_recording_is_cut_upright(tmp_path):
    film = numbered(20)
    path = write(tmp_path / "phone.mp4", np.rot90(film, -1, axes=(1, 2)), turn=90)
    seen = scan(path)
    assert seen.info.rotation == 90
    cut(path, [span_of(seen, 5, 15)], [tmp_path / "clip.mp4"], Writer(seen.info))
    assert numbers(tmp_path / "clip.mp4") == list(range(5, 15))
    assert number_of(read_frames(path, 7, 8, 20)[0]) == 7


@pytest.mark.parametrize("options", [{}, {"bf": "3", "preset": "fast"}, {"codec": "mpeg4"}])
def test_frames_are_found_wherever_one_starts_reading(tmp_path, options):
    path = write(tmp_path / "film.mp4", numbered(50), **options)
    for start, stop in ((0, 1), (11, 14), (12, 13), (30, 50), (49, 50)):
        found = [number_of(p) for p in read_frames(path, start, stop, 50)]
        assert found == list(range(start, stop))


def test_reading_beyond_the_end_is_an_error(tmp_path):
    path = write(tmp_path / "film.mp4", numbered(10))
    with pytest.raises(VideoError, match="ends at frame 10, 12 were asked for"):
        read_frames(path, 8, 12, 10)


def test_a_copied_stream_is_not_encoded_again(tmp_path):
    path = write(tmp_path / "film.mp4", numbered(20), bf="2", preset="fast")
    assert copy_stream(path, tmp_path / "copy.mp4", 20)
    np.testing.assert_array_equal(
        read_frames(path, 0, 20, 20), read_frames(tmp_path / "copy.mp4", 0, 20, 20)
    )
    assert not copy_stream(path, tmp_path / "wrong.mp4", 21)
    assert not (tmp_path / "wrong.mp4").exists()


def test_a_clip_that_no_longer_fits_its_source_is_an_error(tmp_path):
    path = write(tmp_path / "film.mp4", numbered(20))
    seen = scan(path)
    with pytest.raises(VideoError, match="5 frames where 30 were before"):
        cut(path, [Span(15, 45, int(seen.pts[15]), None)], [tmp_path / "c.mp4"], Writer(seen.info))
    assert list(tmp_path.iterdir()) == [path]


def test_colours_keep_their_meaning(tmp_path):
    path = write(tmp_path / "film.mp4", moving(1, 12, 96, 128), colorspace="bt709", crf="1")
    seen = scan(path)
    cut(path, [span_of(seen, 2, 9)], [tmp_path / "clip.mp4"], Writer(seen.info, crf=4))
    before, after = read_frames(path, 2, 9, 12), read_frames(tmp_path / "clip.mp4", 0, 7, 7)
    assert np.abs(before.astype(int) - after).mean() < 2


def test_facts_survive_json(tmp_path):
    from dataclasses import asdict

    info = scan(write(tmp_path / "film.mp4", numbered(8), fps=29.97)).info
    facts = asdict(info) | {"rate": str(info.rate), "time_base": str(info.time_base)}
    assert info_from(facts) == info


def faststart(path):
    write(path, moving(0, 60, 96, 128), crf="2")
    moved = path.with_name("moved.mp4")
    options = {"movflags": "+faststart"}
    with av.open(str(path)) as source, av.open(str(moved), "w", options=options) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return moved.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: b"", "the file is empty"),
        (lambda p: b"no video at all\n" * 50, "cannot be opened as a video"),
        (lambda p: bytes(5000), "cannot be opened as a video"),
        (lambda p: write(p, numbered(20)).read_bytes()[:-400], "cannot be opened as a video"),
        (lambda p: faststart(p)[:-20000], "cut off|decoding stopped"),
    ],
    ids=["empty", "text", "zeros", "no index", "cut off"],
)
def test_damaged_files_are_explained_in_a_line(tmp_path, content, message):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content(tmp_path / "good.mp4"))
    with pytest.raises(VideoError, match=message) as caught:
        scan(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        scan(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        scan(tmp_path / "nowhere.mp4")


def test_damaged_frames_are_counted(tmp_path):
    path = write(tmp_path / "film.mp4", moving(0, 60, 96, 128), crf="2")
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content) // 4, len(content) // 2, 8):
        content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    with suppress(VideoError):  # decoding may stop altogether
        assert scan(path).corrupt.any()
