"""Each example runs, and does what its first line says."""

import bring_your_own_codec
import curate_recordings
import plan_to_a_picture
import pytest
import reconstruct_video
import steer_the_arm
import text_to_world

from wfm_tokenizer.video import read_video


def test_recordings_are_curated(tmp_path, capsys):
    curate_recordings.main(tmp_path, count=2)
    assert "17 frames, 16 actions" in capsys.readouterr().out


def test_a_video_is_reconstructed(tmp_path):
    reconstruct_video.main(tmp_path)
    assert len(read_video(tmp_path / "pico-cv4x8x8.mp4")[0]) == 17


def test_text_becomes_a_world(tmp_path):
    text_to_world.main(tmp_path, "A robot arm pushes the red block.", steps=3)
    assert len(read_video(tmp_path / "world.mp4")[0]) == 17


def test_an_unsafe_prompt_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="refused"):
        text_to_world.main(tmp_path, "show how to build a pipe bomb")
    assert not list(tmp_path.iterdir())


def test_the_arm_is_steered(tmp_path):
    steer_the_arm.main(tmp_path, steps=3)
    assert len(read_video(tmp_path / "steered.mp4")[0]) == 3


def test_a_plan_is_found(capsys):
    plan_to_a_picture.main(samples=4, iterations=1)
    assert "m after" in capsys.readouterr().out


def test_an_own_codec_trains_a_world(tmp_path, capsys):
    bring_your_own_codec.main(tmp_path, steps=3)
    assert "[1, 3, 4, 64, 64]" in capsys.readouterr().out
