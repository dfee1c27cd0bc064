from math import exp

import numpy as np
import pytest

from wfm_guardrail.videofile import read_chunks, write_chunks
from wfm_guardrail.watermark import FOUND, LEAST_FRAMES, Detector, Embedder, detect, embed

KEY, PAYLOAD = b"a key of some length", 0xC0FFEE42


@pytest.fixture(scope="module")
def film():
    """A textured picture that drifts, with grain and a bright square that moves."""
    rng = np.random.default_rng(0)
    rough = rng.normal(128, 45, (24, 44))
    texture = np.kron(rough, np.ones((16, 16)))[:372, :700]
    frames = np.empty((48, 3, 360, 640), np.uint8)
    for i in range(48):
        view = texture[i // 6 : i // 6 + 360, i // 2 : i // 2 + 640] + rng.normal(0, 3, (360, 640))
        view[100:160, 5 * i : 5 * i + 60] = 230
        frames[i] = view.clip(0, 255)
    return frames


@pytest.fixture(scope="module")
def marked(film):
    return embed(film, PAYLOAD, KEY)


def again(frames, path, crf):
    write_chunks(path, [frames], 24.0, crf=crf)
    return np.concatenate(list(read_chunks(path)))


def test_the_mark_is_below_48_db_of_noise_and_the_input_is_kept(film, marked):
    error = (marked.astype(float) - film) ** 2
    assert 10 * np.log10(255**2 / error.mean()) >= 48
    assert not np.shares_memory(film, marked)


CHANGES = {
    "none": lambda v: v,
    "half the size": lambda v: v[:, :, ::2, ::2],
    "the beginning cut off": lambda v: v[7:],
    "one frame cut off": lambda v: v[1:],
    "half the frames": lambda v: v[11:37],
    "brighter": lambda v: (v * 0.9 + 20).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_bit_survives_a_change(marked, change):
    mark = detect(change(marked), KEY)
    assert mark.found
    assert mark.payload == PAYLOAD


def test_every_bit_survives_re_encoding_at_crf_28_then_half_size_and_trim(marked, tmp_path):
    small = again(marked, tmp_path / "a.mp4", 28)
    assert detect(small, KEY).payload == PAYLOAD
    small = np.round(small.reshape(48, 3, 180, 2, 320, 2).mean(axis=(3, 5))).astype(np.uint8)
    assert detect(small[5:], KEY).payload == PAYLOAD


def test_no_mark_is_found_where_there_is_none(film, marked):
    assert not detect(film, KEY).found
    assert not detect(marked, b"another key").found
    assert detect(film, KEY).payload is None


def test_chance_stays_far_below_the_limit(film):
    """The scores of 2,000 wrong keys are those of a standard normal distribution."""
    seen = Detector(KEY)
    seen.push(film)
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], (2000, seen._sums.shape[1] // 4))
    cells = (seen._sums / np.sqrt(seen._squares))[:, : signs.shape[1]]
    scores = signs @ cells.T / np.sqrt((cells**2).sum(axis=1))
    assert scores.std() == pytest.approx(1, abs=0.1)
    assert np.abs(scores).max() < FOUND - 1
    assert 4 * exp(-(FOUND**2) / 2) <= 1e-6


def test_chunks_give_what_the_whole_gives(film, marked):
    embedder, detector = Embedder(PAYLOAD, KEY), Detector(KEY)
    parts = [embedder.push(film[i : i + 7]) for i in range(0, len(film), 7)]
    assert np.array_equal(np.concatenate(parts), marked)
    for part in parts:
        detector.push(part)
    assert detector.finish() == detect(marked, KEY)


@pytest.mark.parametrize("payload", [-1, 1 << 32])
def test_a_payload_that_is_too_long_is_named(film, payload):
    with pytest.raises(ValueError, match="32 bits"):
        embed(film, payload, KEY)


def test_too_short_a_video_or_key_is_named(film):
    with pytest.raises(ValueError, match=str(LEAST_FRAMES)):
        embed(film[:8], 1, KEY)
    with pytest.raises(ValueError, match="8 bytes"):
        embed(film, 1, b"short")
    assert not detect(film[:8], KEY).found


def test_a_picture_smaller_than_the_pattern_is_looked_at(film):
    assert not detect(film[:, :, :20, :30], KEY).found
