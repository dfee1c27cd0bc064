import re
from pathlib import Path

from conftest import moving, write

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("recordings/a.mp4"), moving(0, 17))
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["report"].kept == len(names["clips"]) == 1
    assert names["frames"].shape == (17, 3, 48, 64)
