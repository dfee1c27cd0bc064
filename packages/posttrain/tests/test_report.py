import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from fakes import NextFrameWorld, PatchCodec, SmallDenoiser, SquareWorld

from wfm_posttrain.cli import main
from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.evaluation import EvaluationConfig, Readers, evaluate_world
from wfm_posttrain.metrics import Interval
from wfm_posttrain.report import Curve, draw, page, plot, png, write_report
from wfm_posttrain.vision import SmallVision, fit, inverse_examples, read_gallery

CONFIG = EvaluationConfig(clips=6, frames=4, batch=4)


@pytest.fixture(scope="module")
def readers(recordings):
    gallery = read_gallery(ClipFolder(recordings))
    torch.manual_seed(0)
    inverse = fit(SmallVision(6, 2, width=8), inverse_examples(gallery), steps=150, batch=32)
    return Readers(inverse=inverse)


@pytest.fixture(scope="module")
def found(recordings, readers):
    clips = ClipFolder(recordings)
    return evaluate_world(SquareWorld(), clips, CONFIG, readers=readers, takes=clips)


def test_a_true_world_is_found_to_be_true(found):
    assert found.clips == 6
    assert min(found.psnr) > 25
    assert min(found.psnr) > max(found.psnr_shuffled)
    assert all(gap.low > 0 for gap in found.gap)
    assert all(interval.mean > 0.8 for interval in found.objects["mask_iou"])
    assert found.motion["physics_iq"].mean > 90  # the takes are the clips themselves


def test_actions_are_read_from_imagined_pictures_and_not_from_a_still_world(
    found, recordings, readers
):
    assert min(found.inverse["imagined"]) > 0.5
    assert min(found.inverse["real"]) > 0.5
    still = evaluate_world(SquareWorld(gain=0.0), ClipFolder(recordings), CONFIG, readers=readers)
    assert max(still.inverse["imagined"]) < 0.2
    assert "physics_iq" not in still.motion


def test_latents_are_compared_where_the_world_shows_its_codec(recordings):
    torch.manual_seed(0)
    world = NextFrameWorld(SmallDenoiser(), codec=PatchCodec(), condition_encoder=Nothing())
    found = evaluate_world(world, ClipFolder(recordings), CONFIG)
    assert set(found.latent_l2) == {"imagined", "repeat"}
    assert len(found.latent_l2["repeat"]) == 4
    assert found.latent_l2["imagined"][0] > found.latent_l2["repeat"][0]


class Nothing:
    """A condition encoder that says nothing."""

    def encode(self, inputs, /):
        return {}


def test_distances_are_measured_when_features_are_given(recordings):
    def colours(video):
        return video.mean(dim=(2, 3, 4))

    clips = ClipFolder(recordings)
    found = evaluate_world(
        SquareWorld(), clips, CONFIG, features=colours, features_of="Colours <mine>"
    )
    assert "frechet distance, Colours &lt;mine&gt;" in page(found, "squares")
    grey = evaluate_world(SquareWorld(noise=3.0), clips, CONFIG, features=colours)
    assert found.distances["count"] == 6
    assert found.distances["frechet"] < grey.distances["frechet"]


def test_the_page_is_one_file_with_plots_and_pictures(found, tmp_path):
    path = tmp_path / "page.html"
    write_report(path, found, title="squares & <others>")
    html = path.read_text()
    assert "squares &amp; &lt;others&gt;" in html
    assert html.count("<svg") >= 5
    assert html.count("data:image/png;base64,") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "Physics-IQ" in html
    for drawing in re.findall(r"<svg.*?</svg>", html):
        ET.fromstring(drawing)


def test_what_was_not_measured_is_not_shown(recordings):
    bare = evaluate_world(SquareWorld(), ClipFolder(recordings), CONFIG)
    html = page(bare, "bare")
    assert "Are the actions visible" not in html
    assert "Latent distance" not in html
    assert "strips" not in json.loads(bare.to_json())


def test_curves_are_drawn_with_their_bands():
    intervals = [Interval(1.0, 0.5, 1.5, 9), Interval(2.0, 1.0, 3.0, 9)]
    drawing = plot([Curve.of("gap", intervals), Curve("zero", [0.0, float("nan")])], "Gap")
    assert drawing.count("<polygon") == 1
    assert drawing.count("<polyline") == 2
    assert plot([Curve("nothing", [float("nan")])], "Nothing") == ""


def test_a_drawing_stands_alone_and_names_its_points():
    import xml.etree.ElementTree as ET

    drawing = draw([Curve("score", [1.0, 2.0, 3.0])], ["1%", "25%", "100%"])
    words = [text.text for text in ET.fromstring(drawing).iter() if text.text]
    assert words[-3:] == ["1%", "25%", "100%"]


def test_pictures_survive_the_round_trip():
    import io

    import av

    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    with av.open(io.BytesIO(png(picture))) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(frame, picture)


def test_evaluate_writes_the_page(recordings, tmp_path, capsys):
    command = ["evaluate", "-m", "fakes:SquareWorld", "--clips", str(recordings), "--limit", "3"]
    command += ["--frames", "3", "--html", str(tmp_path / "page.html"), "-q"]
    assert main(command) == 0
    assert "| 3 |" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert main([*command, "--fvd-net", str(tmp_path / "none.ts")]) == 2
    assert "none.ts: no such file" in capsys.readouterr().err
