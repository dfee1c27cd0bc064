"""What clips are: sentences, heads learned from labelled clips, and the user's own."""

import networks
import numpy as np
import pytest
from conftest import moving, write
from test_embedders import curated

from wfm_curator import content
from wfm_curator.content import Head
from wfm_curator.embedders import Called


def labelled(seeds):
    """Vectors and labels of footage and of test cards."""
    pictures, labels = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        card = np.repeat(rng.integers(0, 256, (1, 2, 3), dtype=np.uint8), 32, 1).repeat(48, 0)
        pictures += [moving(seed, 1)[0], card]
        labels += ["footage", "abstract pattern"]
    vectors = networks.colours(np.stack(pictures))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def told(head, vectors):
    chances = head(vectors)
    names = list(chances)
    return [names[i] for i in np.stack([chances[n] for n in names]).argmax(0)]


def test_a_head_learned_from_labelled_clips_tells_others(tmp_path):
    head = content.fit(*labelled(range(40)))
    head.save(tmp_path / "head.npz")
    vectors, labels = labelled(range(100, 130))
    found = told(Head.load(tmp_path / "head.npz"), vectors)
    assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) > 0.95
    assert sum(head(vectors).values()) == pytest.approx(np.ones(60), abs=1e-5)


def test_sentences_make_a_head():
    head = content.zero_shot(networks.worded, {"warm": "red", "cold": "blue", "leaf": "green"})
    pictures = np.zeros((3, 8, 8, 3), np.uint8) + 40
    for picture, channel in zip(pictures, (2, 0, 1), strict=True):
        picture[..., channel] = 90
    vectors = networks.worded.embed(pictures).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert told(head, vectors) == ["cold", "warm", "leaf"]
    with pytest.raises(ValueError, match="needs a network for sentences"):
        content.zero_shot(Called(networks.colours), content.SENTENCES)


def planted(folder):
    """Footage, and a card whose colours wander: it moves, but is none."""
    for n in range(3):
        write(folder / f"footage-{n}.mp4", moving(n, 17))
        card = np.repeat(np.array([[[250, 0, 0], [250, 10, 10]]], np.uint8), 32, 1).repeat(48, 0)
        film = np.stack([card] * 17)
        for t in range(17):
            film[t, 8 * n : 8 * n + 6, 2 * t : 2 * t + 6] = 200
        write(folder / f"card-{n}.mp4", film)
    return folder


def test_a_users_head_leaves_out_what_is_not_wanted_and_a_threshold_is_a_view(tmp_path):
    folder = planted(tmp_path / "in")
    embed = {"model": "networks:colours", "content": "networks:flat"}
    given = {"embed": embed, "dedup": {"enabled": False}}
    wanted = {"filter": {"content_reject": ["pattern"]}}
    _, rows = curated(folder, tmp_path / "out", **given, **wanted)
    reasons = {r["recording"]: r["reason"] for r in rows}
    assert reasons == {f"card-{n}.mp4": "content: pattern" for n in range(3)} | {
        f"footage-{n}.mp4": "" for n in range(3)
    }
    assert {r["content"] for r in rows} == {"pattern", "footage"}
    report, _ = curated(
        folder,
        tmp_path / "out",
        **given,
        filter={"content_reject": ["pattern"], "content_least": 1.0},
    )
    assert report.kept == 6


def test_a_category_of_the_paper_is_filled_in_where_the_recording_names_none(tmp_path):
    folder = planted(tmp_path / "in")
    (folder / "card-0.json").write_text('{"category": "nature"}')
    labels = {"driving": "red", "nature dynamics": "blue", "none of these": "green"}
    embed = {"model": "networks:worded", "content": "zero-shot", "labels": labels}
    _, rows = curated(folder, tmp_path / "out", embed=embed, dedup={"enabled": False})
    kinds = {r["recording"]: r["category"] for r in rows if r["recording"].startswith("card")}
    assert kinds == {
        "card-0.mp4": "nature dynamics",
        "card-1.mp4": "driving",
        "card-2.mp4": "driving",
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere.npz", "no such file"), ("networks:none", "embed.content is"), ("x.npz", "wanted")],
)
def test_a_head_that_is_none_is_refused_before_any_work(folder, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", a=1)
    embed = {"model": "networks:colours", "content": name}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        curated(folder, tmp_path / "out", embed=embed)


def test_labels_and_settings_that_do_not_fit_are_refused(folder, tmp_path):
    embed = {"model": "networks:colours", "content": "networks:flat"}
    with pytest.raises(ValueError, match=r"names \['cartoon'\]; labels are footage, pattern"):
        curated(folder, tmp_path / "out", embed=embed, filter={"content_reject": ["cartoon"]})
    with pytest.raises(ValueError, match=r"needs embed\.content"):
        curated(folder, tmp_path / "out", filter={"content_reject": ["cartoon"]})
    with pytest.raises(ValueError, match=r"needs embed\.model"):
        curated(folder, tmp_path / "out", embed={"content": "networks:flat"})


def test_a_head_of_another_network_is_refused():
    with pytest.raises(ValueError, match="made for 66 features, the vectors have 8"):
        content.fit(*labelled(range(3)))(np.zeros((2, 8), np.float32))
