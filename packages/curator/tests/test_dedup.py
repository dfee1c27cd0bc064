import cv2
import numpy as np
import pytest
from conftest import moving
from hypothesis import given
from hypothesis import strategies as st

from wfm_curator.config import DedupConfig
from wfm_curator.dedup import find_duplicates, nearest_centres, spherical_kmeans
from wfm_curator.embed import Embedding, embed


def ranks(n):
    return [(-i,) for i in range(n)]


def degraded(film, how):
    match how:
        case "copy":
            return film
        case "smaller":
            return np.stack([cv2.resize(p, (64, 48), interpolation=cv2.INTER_AREA) for p in film])
        case "darker":
            return (film * 0.8).astype(np.uint8)
        case "jpeg":
            done = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 40])[1] for p in film]
            return np.stack([np.asarray(cv2.imdecode(d, cv2.IMREAD_COLOR)) for d in done])
        case _:
            noise = np.random.default_rng(0).normal(0, 6, film.shape)
            return (film + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["copy", "smaller", "darker", "jpeg", "noise"])
def test_planted_duplicates_are_found_and_nothing_else(how):
    films = [
        moving(seed, 9, 96, 128) for seed in range(60)
    ]  # 3 scenes, 20 ways of the block in each
    films += [degraded(films[i], how) for i in range(0, 60, 7)]
    found = find_duplicates([embed(f) for f in films], ranks(len(films)), DedupConfig())
    assert [(d.index, d.kept) for d in found] == [(60 + k, 7 * k) for k in range(9)]


def test_the_best_stays():
    film = moving(0, 9)
    clips = [embed(film)] * 3
    found = find_duplicates(clips, [(1,), (3,), (2,)], DedupConfig())
    assert [(d.index, d.kept, d.cosine) for d in found] == [(0, 1, 1.0), (2, 1, 1.0)]


def test_a_border_between_clusters_hides_no_pair():
    films = [moving(seed, 9) for seed in range(40)]
    clips = [embed(f) for f in films] + [embed(degraded(f, "noise")) for f in films]
    for seed in range(4):
        config = DedupConfig(clusters=12, seed=seed)
        assert len(find_duplicates(clips, ranks(80), config)) == 40


def cloud(n, seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 6, n)
    vectors = np.eye(12, dtype=np.float32)[groups] + rng.normal(0, 0.05, (n, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cells = np.full((n, 8, 16, 16), 10, np.uint8) + groups[:, None, None, None].astype(np.uint8)
    pairs = zip(vectors.astype(np.float16), cells, strict=True)
    return [Embedding(v, c, f"{i}") for i, (v, c) in enumerate(pairs)]


@given(n=st.integers(0, 60), seed=st.integers(0, 99), cosine=st.floats(0.6, 1))
def test_whatever_is_left_out_is_like_something_kept(n, seed, cosine):
    clips, config = cloud(n, seed), DedupConfig(cosine=cosine)
    found = find_duplicates(clips, ranks(n), config)
    out = {d.index for d in found}
    assert len(out) == len(found)
    assert all(d.kept not in out and d.cosine >= cosine - 1e-3 for d in found)
    assert found == find_duplicates(clips, ranks(n), config)


def test_clusters_are_the_same_for_the_same_seed():
    vectors = np.stack([e.vector for e in cloud(200, 0)]).astype(np.float32)
    first, second = (spherical_kmeans(vectors, 6, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-3)
    assert nearest_centres(vectors, first, 2).shape == (200, 2)


def test_descriptors_have_length_one_and_still_pictures_are_no_trouble():
    for film in (moving(0, 3), np.zeros((1, 20, 30, 3), np.uint8), np.full((5, 8, 8, 3), 255)):
        vector = embed(film.astype(np.uint8)).vector.astype(np.float32)
        assert np.isfinite(vector).all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=2e-3) or not vector.any()
