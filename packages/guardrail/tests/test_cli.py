import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import scene

from wfm_guardrail import AuditLog
from wfm_guardrail.cli import main
from wfm_guardrail.faces import find_detector
from wfm_guardrail.videofile import frame_rate, read_chunks, write_chunks

PACKAGE = main.__module__.split(".")[0]


def test_safe_and_refused_prompts_have_different_exit_codes(capsys):
    assert main(["check-text", "a robot arm lifts a cube"]) == 0
    assert main(["check-text", "a robot", "h3nt4i"]) == 3
    out = capsys.readouterr().out
    assert "prompt 2: REFUSED" in out
    assert "matched 'hentai'" in out


def test_json_is_one_object_a_line(capsys):
    assert main(["check-text", "--json", "a robot", "hentai"]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["safe"], second["safe"]) == (True, False)
    assert second["category"] == "sexual"
    assert second["stage"] == "prompt"


def test_prompts_come_from_a_file_or_standard_input(tmp_path, capsys, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text("a robot\n\na car\n")
    assert main(["check-text", "--file", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("a robot\n"))
    assert main(["check-text", "--file", "-"]) == 0


def test_videos_are_checked(film, tmp_path, capsys):
    assert main(["check-video", str(film)]) == 0
    black = tmp_path / "black.mp4"
    write_chunks(black, [np.zeros((9, 3, 32, 32), np.uint8)], 10.0)
    assert main(["check-video", str(film), str(black)]) == 3
    assert "blank" in capsys.readouterr().out


def test_one_unreadable_file_among_several_is_named_and_fails(film, tmp_path, capsys, caplog):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    assert main(["check-video", str(bad), str(film)]) == 1
    assert "bad.mp4" in caplog.text
    assert "film.mp4: safe" in capsys.readouterr().out


def error(capsys, *argv):
    assert main(list(map(str, argv))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"wfm-guardrail {argv[0]}: error: ")
    return line


def test_mistakes_end_in_one_line(film, tmp_path, capsys):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[:300])
    folder = tmp_path / "folder"
    folder.mkdir()
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9\xff")
    assert "no text given" in error(capsys, "check-text")
    assert "no.txt" in error(capsys, "check-text", "--file", tmp_path / "no.txt")
    assert "not UTF-8" in error(capsys, "check-text", "--file", latin)
    assert "no such policy" in error(capsys, "check-text", "x", "--policy", "lax")
    assert "no such folder" in error(capsys, "check-text", "x", "--audit", tmp_path / "n" / "a")
    assert "name a file" in error(capsys, "check-text", "x", "--audit", folder)
    assert "no such file" in error(capsys, "check-video", tmp_path / "no.mp4")
    assert "no such file" in error(capsys, "check-video", folder)
    assert "cut.mp4" in error(capsys, "check-video", cut)
    assert "not a readable video" in error(capsys, "check-video", latin)
    assert "is the input" in error(capsys, "blur", film, "-o", film)
    assert "between 0 and 51" in error(capsys, "blur", film, "-o", tmp_path / "o.mp4", "--crf", 99)
    assert "no.yaml" in error(capsys, "lint-policy", tmp_path / "no.yaml")
    assert "no such audit log" in error(capsys, "audit", "verify", tmp_path / "no.jsonl")


def test_strict_without_a_detector_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("wfm_guardrail.faces.find_spec", lambda name: None)
    assert "wfm-guardrail[faces]" in error(capsys, "check-text", "x", "--policy", "strict")


def test_blurring_without_a_detector_writes_nothing(film, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wfm_guardrail.faces.find_spec", lambda name: None)
    out = tmp_path / "out.mp4"
    assert "wfm-guardrail[faces]" in error(capsys, "blur", film, "-o", out)
    assert not out.exists()


@pytest.mark.skipif(find_detector("auto", None) is None, reason="no face detector is installed")
def test_faces_in_a_file_are_blurred(portrait, tmp_path, capsys):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_chunks(source, [np.stack([portrait] * 10)], 25.0)
    assert main(["blur", str(source), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 10
    detector = find_detector("auto", None)
    frames = np.concatenate(list(read_chunks(out)))
    assert frames.shape == (10, 3, 240, 240)
    assert frame_rate(out) == 25.0
    assert sum(len(detector.detect(frame)) for frame in frames) == 0


@pytest.mark.skipif(find_detector("auto", None) is None, reason="no face detector is installed")
def test_a_detector_that_fails_in_the_middle_leaves_no_file(film, tmp_path, capsys, monkeypatch):
    kind = type(find_detector("auto", None))
    monkeypatch.setattr(kind, "detect", lambda self, frame: 1 / 0)
    folder = tmp_path / "out"
    assert main(["blur", str(film), "-o", str(folder / "out.mp4")]) == 3
    assert list(folder.iterdir()) == []
    assert "REFUSED" in capsys.readouterr().out


def test_odd_sizes_survive_the_file(tmp_path):
    path = tmp_path / "odd.mp4"
    frames = scene(5, 33, 47)
    assert write_chunks(path, [frames], 10.0, crf=0) == 5
    (back,) = read_chunks(path)
    assert back.shape == frames.shape


def test_attack_and_eval_print_their_tables(tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("hentai\n")
    assert main(["attack", "--words", str(words)]) == 0
    assert "mean over disguises" in capsys.readouterr().out
    assert main(["attack", "--words", str(words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macro_recall"] > 0.9
    benign = tmp_path / "benign.txt"
    benign.write_text("a robot\nhentai\n")
    flags = ["--benign", str(benign), "--unsafe", str(words)]
    assert main(["eval", *flags]) == 0
    out = capsys.readouterr().out
    assert "1 of 2" in out
    assert "1 of 1     100%" in out


def test_posture_is_printed(capsys):
    assert main(["posture", "--json"]) == 0
    posture = json.loads(capsys.readouterr().out)
    assert "content" in {c["check"] for c in posture["coverage"] if not c["effective"]}


def test_lint_passes_presets_and_names_collisions(tmp_path, capsys):
    assert main(["lint-policy", "physical_ai"]) == 0
    own, words = tmp_path / "own.yaml", tmp_path / "words.txt"
    own.write_text("entries: {brand: {explicit: [deskin]}}")
    words.write_text("desk\nin\n")
    assert main(["lint-policy", str(own), "--words", str(words)]) == 1
    assert "desk in" in capsys.readouterr().out


def test_the_audit_log_is_written_and_verified(tmp_path, capsys):
    log = tmp_path / "a.jsonl"
    assert main(["check-text", "a robot", "--audit", str(log)]) == 0
    assert main(["audit", "verify", str(log)]) == 0
    assert "2 records, unbroken" in capsys.readouterr().out
    log.write_bytes(log.read_bytes().replace(b'"safe":true', b'"safe":null'))
    assert "was edited" in error(capsys, "audit", "verify", log)


def test_a_key_file_opens_a_keyed_log(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    log = tmp_path / "a.jsonl"
    AuditLog(log, key=b"secret").append("x", {})
    assert main(["audit", "verify", str(log), "--key-file", str(key)]) == 0


def test_neither_help_nor_a_text_check_imports_torch():
    code = (
        "import sys, time; from {0}.cli import main\n"
        "assert main(['check-text', 'a robot', '-q']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code.format(PACKAGE)], check=True)
    code = (
        "import sys; import {0}, {0}.cli; {0}.cli.build_parser()\n"
        "assert not {{'torch', 'numpy', 'pydantic', 'av'}} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code.format(PACKAGE)], check=True)


def test_help_and_version_exit_with_zero(capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit, match="0"):
            main([flag])
    with pytest.raises(SystemExit, match="2"):
        main(["unknown"])
