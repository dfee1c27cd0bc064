import cv2
import numpy as np
import pytest
from conftest import moving
from hypothesis import given
from hypothesis import strategies as st

from wfm_curator import dedup
from wfm_curator.clusters import nearest_centres, pairs_above, spherical_kmeans
from wfm_curator.config import DedupConfig
from wfm_curator.dedup import find_duplicates, unit
from wfm_curator.embed import Embedding, Variant, embed, mirrored, pack, unpack


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
        case "logo":
            film = film.copy()
            film[:, 5:10, -14:-4] = 255
            return film
        case "jpeg":
            done = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 40])[1] for p in film]
            return np.stack([np.asarray(cv2.imdecode(d, cv2.IMREAD_COLOR)) for d in done])
        case _:
            noise = np.random.default_rng(0).normal(0, 6, film.shape)
            return (film + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["copy", "smaller", "darker", "logo", "jpeg", "noise"])
def test_planted_duplicates_are_found_and_nothing_else(how):
    films = [
        moving(seed, 9, 96, 128) for seed in range(60)
    ]  # 3 scenes, 20 ways of the block in each
    films += [degraded(films[i], how) for i in range(0, 60, 7)]
    found = find_duplicates([embed(f) for f in films], ranks(len(films)), DedupConfig())
    pairs, wanted = {(d.index, d.kept) for d in found}, {(60 + k, 7 * k) for k in range(9)}
    assert wanted <= pairs
    assert len(pairs - wanted) <= 1  # among 1,770 pairs of like scenes, one has like ways too


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
        found = {d.index for d in find_duplicates(clips, ranks(80), config)}
        assert set(range(40, 80)) <= found
        assert len(found) <= 42


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
    clips, config = cloud(n, seed), DedupConfig(cosine=cosine, variants=False)
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


def test_footage_of_few_frames_a_second_has_no_trims_that_are_nothing():
    hows = [v.how for v in embed(moving(0, 12), per_second=2.0).variants]
    assert hows == ["cropped 10%", "0.5 s later", "0.5 s less", "twice as fast"]


def played(films, fps=25):
    """Embed films as an analysis does: four means a second."""
    step = round(fps / 4)
    done = []
    for film in films:
        parts = [film[i : i + step].mean(0) for i in range(0, len(film), step)]
        pictures = np.stack(parts).round().astype(np.uint8)
        done.append(embed(pictures, per_second=fps / step))
    return done


def altered(film, how):
    h, w = film.shape[1:3]
    match how:
        case "mirrored":
            return film[:, :, ::-1]
        case "cropped":
            return film[:, h // 20 : -(h // 20), w // 20 : -(w // 20)]
        case "logo":
            film = film.copy()
            film[:, 4:10, -16:-6] = 255
            return film
        case "starts later":
            return film[10:]
        case "ends earlier":
            return film[:-12]
        case _:
            return film[::2]


HOWS = ("mirrored", "cropped", "logo", "starts later", "ends earlier", "faster")


def test_copies_that_were_altered_are_found_with_recall_and_precision():
    seeds = [seed for seed in range(38) if seed not in (19, 28)]  # their ways are those of others
    films = [moving(seed, 60, 96, 128) for seed in seeds]
    copies = {(36 + 6 * n + k, n): (n, how) for n in range(6) for k, how in enumerate(HOWS)}
    films += [altered(films[n], how) for n, how in copies.values()]
    found = find_duplicates(played(films), ranks(len(films)), DedupConfig())
    pairs = {(d.index, d.kept) for d in found}
    assert len(pairs & set(copies)) / len(copies) >= 0.95
    assert len(pairs & set(copies)) / len(pairs) >= 0.95
    assert {d.how for d in found if copies.get((d.index, d.kept), ("", ""))[1] == "mirrored"} == {
        "mirrored"
    }
    plain = find_duplicates(played(films), ranks(len(films)), DedupConfig(variants=False))
    assert len(plain) < len(found)


def test_a_mirror_image_is_told_without_looking_at_it():
    film = moving(3, 12)
    one, other = embed(film), embed(film[:, :, ::-1])
    told = mirrored(Variant("", one.vector, one.cells))
    np.testing.assert_allclose(told.vector, other.vector, atol=4e-3)
    np.testing.assert_array_equal(told.cells, other.cells)


def test_embeddings_survive_the_ledger():
    for clip in (embed(moving(1, 9)), *played([moving(2, 60)])):
        again = unpack(*pack(clip))
        assert again.hash == clip.hash
        np.testing.assert_array_equal(again.vector, clip.vector)
        np.testing.assert_array_equal(again.cells, clip.cells)
        assert [v.how for v in again.variants] == [v.how for v in clip.variants]
        for a, b in zip(again.variants, clip.variants, strict=True):
            np.testing.assert_array_equal(a.vector, b.vector)
            np.testing.assert_array_equal(a.cells, b.cells)


def planted(n, d=64, seed=0):
    """Random unit vectors, of which the last tenth are near copies of the first."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    copies = n // 10
    vectors[-copies:] = vectors[:copies] + rng.normal(scale=0.2, size=(copies, d))
    return unit(vectors), {(i, n - copies + i) for i in range(copies)}


@pytest.mark.parametrize("backend", ["numpy", "faiss"])
def test_clusters_lose_hardly_a_pair(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    vectors, pairs = planted(6000)
    exact = {(a, b) for a, b in np.argwhere(np.triu(vectors @ vectors.T >= 0.9, 1))}
    for probes, recall in ((1, 0.8), (2, 0.97), (3, 0.99)):
        config = DedupConfig(clusters=40, probes=probes, backend=backend)
        found = {(a, b) for a, b, _ in pairs_above(vectors, 0.9, config)}
        assert found <= exact
        assert len(found & pairs) / len(pairs) >= recall


@given(n=st.integers(2, 40), seed=st.integers(0, 50), k=st.integers(1, 8))
def test_a_query_is_compared_with_its_cluster(n, seed, k):
    vectors, _ = planted(n + 10, 8, seed)
    config = DedupConfig(clusters=k, probes=min(2, k), seed=seed)
    found = {i: c for i, j, c in pairs_above(vectors, 0.999, config, queries=vectors) if i == j}
    assert set(found) == set(range(len(vectors)))


def test_clips_of_an_earlier_run_stay_and_new_copies_of_them_go(folder, tmp_path):
    import shutil

    import pyarrow.parquet as pq
    from conftest import write

    import wfm_curator as wc

    config = {"run": {"workers": 0}, "split": {"method": "content"}}
    wc.curate(folder, tmp_path / "first", wc.CurateConfig.model_validate(config))
    new = tmp_path / "new"
    new.mkdir()
    write(new / "big.mp4", np.repeat(np.repeat(moving(0, 17), 2, 1), 2, 2))
    shutil.copy(folder / "sim-3.mp4", new / "copy.mp4")
    write(new / "other.mp4", moving(77, 17))
    config["dedup"] = {"against": [str(tmp_path / "first")]}
    report = wc.curate(new, tmp_path / "second", wc.CurateConfig.model_validate(config))
    assert (report.kept, report.duplicates) == (1, 2)
    rows = pq.read_table(tmp_path / "second" / "manifest.parquet").to_pylist()
    twins = [r for r in rows if r["state"] == "duplicate"]
    assert {r["kept_for"] for r in twins} == {"earlier run"}
    earlier = {c.key for c in wc.ShardedDataset(tmp_path / "first")}
    assert {r["duplicate_of"] for r in twins} <= earlier


def test_a_thousand_exact_copies_are_no_million_pairs(monkeypatch):
    looked = []

    def counted(vectors, *args, **named):
        looked.append(len(vectors))
        return []

    monkeypatch.setattr(dedup, "pairs_above", counted)
    clips = [embed(moving(seed, 9)) for seed in (0, 1)] * 1000
    found = find_duplicates(clips, ranks(2000), DedupConfig(variants=False))
    assert looked == [2]
    assert {(d.index, d.kept) for d in found} == {(i, i % 2) for i in range(2, 2000)}


def test_copies_of_a_clip_that_is_left_out_point_to_the_one_that_is_kept():
    film = moving(0, 9, 96, 128)
    clips = [embed(film), embed(degraded(film, "jpeg")), embed(degraded(film, "jpeg"))]
    found = find_duplicates(clips, ranks(3), DedupConfig())
    assert [(d.index, d.kept) for d in found] == [(1, 0), (2, 0)]


def test_torch_finds_the_clusters_that_numpy_finds():
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(300, 16)))
    centres = unit(rng.normal(size=(9, 16)))
    plain = nearest_centres(vectors, centres, 3)
    np.testing.assert_array_equal(nearest_centres(vectors, centres, 3, backend="torch"), plain)
