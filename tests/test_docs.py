"""The documents' examples run and give what they show."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_concepts():
    failures, examples = doctest.testfile(str(ROOT / "docs/concepts.md"), module_relative=False)
    assert examples > 10
    assert failures == 0


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_examples(readme):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert scope["report"].swapped
    assert scope["hidden"].shape == (2, 300, 2560)
