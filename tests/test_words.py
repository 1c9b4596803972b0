"""One vocabulary, the field's: words of an earlier dialect do not come back into code, help, messages or documents."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Old word -> the field's.
WORDS = {
    r"picture": "image",
    r"\bpaint": "generate",
    r"recipe": "config",
    r"\bjudge": "fold model",
    r"apprais": "value",
    r"\bworth\b": "utility",
    r"consensus": "ensemble",
    r"surplus": "oversampling",
    r"\bsteer": "adapter, outer variable",
    r"\bnudge": "weight perturbation",
    r"\blevers?\b": "outer variables",
    r"trainingset": "Examples",
    r"phrasegroups|\bphrases?\b": "prompt attribute",
    r"\bchances?\b": "probability",
    r"spread_evenly": "balanced_resample",
    r"\bseparation\b": "AUC",
    r"\bfoundation\b": "pretraining",
    r"likewise|whoever|\bnobody\b|\bsee there\b": "a plain sentence",
}


def texts() -> dict[str, str]:
    paths = [
        *ROOT.glob("utilgen_jax/**/*.py"),
        *ROOT.glob("utilgen_jax/**/*.md"),
        *ROOT.glob("utilgen_jax/assets/report/*"),
    ]
    for pattern in ("*.md", "configs/*.*", "launch/*.*", "colabs/*.*", "setup.py"):
        paths += ROOT.glob(pattern)
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    del found["CHANGELOG.md"]  # tells what was renamed
    schema = "utilgen_jax/config/schema.py"
    found[schema] = re.sub(r"\nRENAMED: .*?\n}", "", found[schema], flags=re.DOTALL)  # refuses the old names
    return found


TEXTS = texts()


@pytest.mark.parametrize("word", WORDS)
def test_the_fields_word_is_used(word):
    places = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
        for name, text in sorted(TEXTS.items())
        for match in re.finditer(word, text, re.IGNORECASE)
    ]
    assert not places, f"the field says {WORDS[word]!r}:\n" + "\n".join(places)
