import json
import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make, noise, write_film

from wfm_tokenizer.cli import main
from wfm_tokenizer.evaluation import measure
from wfm_tokenizer.metrics import frechet_distance, psnr, ssim
from wfm_tokenizer.tables import markdown, plot


def test_psnr_is_that_of_the_error_in_steps_of_a_byte():
    target = torch.zeros(1, 3, 2, 8, 8)
    output = target + 10.2 / 127.5  # 127.5 + 10.2 is rounded to 138, as in a file
    assert psnr(output, target) == pytest.approx(20 * math.log10(255 / 10.5), abs=1e-4)


def slow_ssim(a, b):
    """Window after window, as the formula of Wang et al. says, unbiased."""
    values = []
    for channel in range(3):
        for y in range(a.shape[1] - 6):
            for x in range(a.shape[2] - 6):
                p, q = (v[channel, y : y + 7, x : x + 7].ravel() for v in (a, b))
                c = np.cov(p, q)
                top = (2 * p.mean() * q.mean() + 6.5025) * (2 * c[0, 1] + 58.5225)
                bottom = (p.mean() ** 2 + q.mean() ** 2 + 6.5025) * (c[0, 0] + c[1, 1] + 58.5225)
                values.append(top / bottom)
    return np.mean(values)


def test_ssim_is_the_mean_over_windows():
    target = noise(1, 3, 2, 9, 10).mul(127.5).round().div(127.5)
    output = (target + 0.3 * noise(1, 3, 2, 9, 10, seed=1)).clamp(-1, 1)
    pixels = ((output + 1) * 127.5).round().double().numpy()[0]
    for t in range(2):
        expected = slow_ssim(pixels[:, t], ((target[0, :, t] + 1) * 127.5).double().numpy())
        assert float(ssim(output, target)[0, t]) == pytest.approx(expected, abs=1e-5)
    assert ssim(target + 0.5 / 127.5 - 0.5 / 127.5, target).min() > 0.9999


def test_the_frechet_distance_is_that_of_two_gaussians():
    dice = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 2, generator=dice)
    b = torch.randn(4000, 2, generator=dice) * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, 0.0])
    exact = 1 + (2 - 1) ** 2 + (3 - 1) ** 2
    assert frechet_distance(a, b) == pytest.approx(exact, rel=0.1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="2 clips or more"):
        frechet_distance(a[:1], b)


@pytest.mark.parametrize(("name", "bits"), [("CV8x8x8", 16 * 16), ("DV8x16x16", math.log2(140))])
def test_bits_per_pixel_count_every_cell(name, bits):
    tokenizer = make(FAMILIES[name])
    clips = [noise(1, 3, 9, 32, 32), noise(1, 3, 9, 32, 32, seed=1), noise(1, 3, 1, 16, 16)]
    small, large = measure(tokenizer, clips, lambda video: video.mean((2, 3, 4)))
    cells = 2 * (32 // tokenizer.compression[1]) ** 2
    assert large["bits_per_pixel"] == pytest.approx(cells * bits / (9 * 32 * 32), abs=1e-5)
    assert (small["clips"], large["clips"]) == (1, 2)
    assert (small["resolution"], large["resolution"]) == ("16x16", "32x32")
    assert large["peak_mb"] > 10
    assert "rfvd" in large
    assert "rfvd" not in small


def test_evaluation_of_two_models_ends_in_a_table_and_a_picture(tmp_path, capsys):
    write_film(tmp_path / "film.mp4", frames=9, height=32, width=48)
    argv = ["evaluate", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "out"), "--json"]
    for name in ("CV8x8x8", "DV8x16x16"):
        make(FAMILIES[name].model_copy(update={"name": name})).save(tmp_path / name)
        argv += ["-m", str(tmp_path / name)]
    assert main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == ["CV8x8x8", "DV8x16x16"]
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == rows
    assert (tmp_path / "out" / "table.md").read_text() == markdown(rows)
    picture = ET.fromstring((tmp_path / "out" / "plot.svg").read_text())
    assert len([e for e in picture.iter() if e.tag.endswith("circle")]) == 2


def test_a_plot_has_better_models_higher_and_larger_ones_to_the_right():
    rows = [
        {"model": "a", "resolution": "8x8", "bits_per_pixel": 0.1, "psnr": 20.0},
        {"model": "b", "resolution": "8x8", "bits_per_pixel": 0.4, "psnr": 30.0},
    ]
    circles = [e for e in ET.fromstring(plot(rows)).iter() if e.tag.endswith("circle")]
    (ax, ay), (bx, by) = ((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in circles)
    assert ax < bx
    assert ay > by
