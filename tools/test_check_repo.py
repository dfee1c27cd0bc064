"""The repository check finds what it is there to find."""

import shutil
from pathlib import Path

import pytest

from check_repo import ROOT, check


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Copy the sources of this repository: as they are, the check has no complaint."""
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", ".nox")
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=ignore)
    shutil.copytree(ROOT / "contracts", tmp_path / "contracts", ignore=ignore)
    assert check(tmp_path) == []
    return tmp_path


def test_a_sibling_import_is_found(repository):
    (repository / "packages/wfm-ar/src/wfm_ar/planted.py").write_text("from wfm_tokenizer import x")
    (problem,) = check(repository)
    assert problem == (
        "packages/wfm-ar/src/wfm_ar/planted.py:1: imports wfm_tokenizer; declare a Protocol"
    )


def test_an_absolute_import_of_oneself_is_found(repository):
    (repository / "packages/wfm-ar/src/wfm_ar/planted.py").write_text("import wfm_ar.config")
    (problem,) = check(repository)
    assert "import it relatively" in problem


def test_a_drifted_contract_is_found(repository):
    file = repository / "packages/wfm-diffusion/src/wfm_diffusion/interfaces.py"
    text = file.read_text()
    assert "def latent_channels(self) -> int" in text
    file.write_text(text.replace("def latent_channels(self) -> int", "def channels(self) -> int"))
    (problem,) = check(repository)
    assert "LatentCodec differs from contracts/interfaces.py; change both" in problem


def test_a_drifted_copy_is_found(repository):
    original = repository / "packages/tokenizer/src/wfm_tokenizer/settings.py"
    original.write_text(original.read_text().replace("def explain(", "def explain_all("))
    assert any("has no explain" in problem for problem in check(repository))


def test_a_mark_above_nothing_is_found(repository):
    file = repository / "packages/wfm-ar/src/wfm_ar/planted.py"
    file.write_text("# same as: contracts/interfaces.py\nx = 1\n")
    (problem,) = check(repository)
    assert "stands above no top-level definition" in problem


def test_a_heavy_model_is_found(repository):
    file = repository / "packages/wfm-ar/src/wfm_ar/weights/heavy/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\0" * 16_000_001)
    (problem,) = check(repository)
    assert "over 16 MB" in problem
