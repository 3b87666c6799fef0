"""models.toml: what ships, what a user adds, and the exact place of every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqwen.errors import InvalidConfig, UnknownModel
from edgeqwen.models.catalogue import Catalogue, load_catalogue
from edgeqwen.models.ref import parse_ref
from edgeqwen.paths import shipped_catalogue

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(shipped_catalogue(), Path("no such file"))


def merged(tmp_path: Path, text: str) -> Catalogue:
    own = tmp_path / "models.toml"
    own.write_text(text)
    return load_catalogue(shipped_catalogue(), own)


OWN_MODEL = """
[models.my-qwen]
name = "My Qwen"
family = "qwen3"
parameters_b = 0.6
licence = "apache-2.0"
architecture = "qwen3"
context = 4096
capabilities = ["chat"]
thinking = "none"
repo = "me/my-qwen"
revision = "0"
default_quant = "q8_0"
shape = {n_layers = 1, n_embd = 1, n_ff = 1, n_head = 1, n_head_kv = 1, key_length = 1, value_length = 1}
variants = [{quant = "q8_0", files = [{name = "a.gguf", size = 5, sha256 = "%s"}]}]
""" % ("ab" * 32)


def test_the_shipped_catalogue_passes_its_checker() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/check_catalogue.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"models\.toml: \d+ models, 0 problems", done.stdout)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (r'sha256 = "[0-9a-f]{64}"', 'sha256 = "ABC"', "64 lower-case hex digits"),
        (r'revision = "[0-9a-f]{40}"', 'revision = "main"', "not pinned"),
        (r'default_quant = "[a-z0-9_]+"', 'default_quant = "q9_9"', "no variant has the quant q9_9"),
        (r"-00002-of-00002\.gguf", "-00003-of-00002.gguf", "shards are not complete"),
        (r'architecture = "qwen2"', 'architecture = "llama"', "unknown architecture llama"),
        (r'(?m)^quant = "q5_0"', 'quant = "Q5_0"', "quant is not lower case"),
    ],
)
def test_the_checker_finds_what_is_wrong(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    text = shipped_catalogue().read_text()
    wrong, count = re.subn(old, new, text)
    assert count
    file = tmp_path / "models.toml"
    file.write_text(wrong)
    done = subprocess.run(
        [sys.executable, "scripts/check_catalogue.py", str(file)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert complaint in done.stdout


def test_every_model_of_the_family_is_there(catalogue: Catalogue) -> None:
    families = {model.family for model in catalogue.models.values()}
    assert {"qwen2.5", "qwen2.5-coder", "qwen3"} <= families
    coder = catalogue.models["qwen2.5-coder-0.5b"]
    assert (coder.licence, coder.thinking, coder.context) == ("apache-2.0", "none", 32768)
    assert catalogue.licences[catalogue.models["qwen2.5-3b"].licence].commercial_use is False


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("qwen3-4b", "qwen3-4b"),
        ("Qwen3-4B:Q8_0", "qwen3-4b"),
        ("qwen3:4b", "qwen3-4b"),
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b"),
    ],
)
def test_models_are_found_as_people_write_them(catalogue: Catalogue, typed: str, found: str) -> None:
    assert catalogue.find(parse_ref(typed)).ref == found


@pytest.mark.parametrize(
    ("typed", "near"), [("qwen3-4", "qwen3-4b"), ("qwen2.5-coder-0.5", "qwen2.5-coder-0.5b")]
)
def test_unknown_models_get_the_nearest_names(catalogue: Catalogue, typed: str, near: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalogue.find(parse_ref(typed))
    assert near in caught.value.suggestions
    assert near in str(caught.value)


def test_files_are_recognised_by_size_and_hash(catalogue: Catalogue) -> None:
    model, variant, file = next(catalogue.files())
    assert catalogue.recognise([(file.size, file.sha256)]) == (model, variant)
    assert catalogue.recognise([(file.size + 1, file.sha256)]) is None
    assert catalogue.recognise([(file.size, "0" * 64)]) is None
    assert catalogue.recognise([(file.size, file.sha256), (5, "0" * 64)]) is None, "with a stranger's shard"


def test_a_users_model_is_merged_over_the_shipped_ones(tmp_path: Path) -> None:
    catalogue = merged(tmp_path, OWN_MODEL)
    own = catalogue.models["my-qwen"]
    assert own.ref == "my-qwen"
    assert own.variants[0].evidence == "own"
    assert "qwen3-4b" in catalogue.models


def test_a_user_may_change_one_value(tmp_path: Path) -> None:
    catalogue = merged(tmp_path, '[models."qwen3-4b".sampling.chat]\ntemperature = 0.1\n')
    sampling = catalogue.models["qwen3-4b"].sampling["chat"]
    assert sampling.temperature == 0.1
    assert (
        sampling.top_p
        == load_catalogue(shipped_catalogue(), tmp_path / "x").models["qwen3-4b"].sampling["chat"].top_p
    )


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('[models."qwen3-4b"]\nlicense = "x"\n', 'models."qwen3-4b".license', "did you mean licence?"),
        ('[models."qwen3-4b"]\ncontext = "long"\n', 'models."qwen3-4b".context', "expected int, got str"),
        ('[models."qwen3-4b".sampling.chat]\ntemprature = 1\n', "sampling", "did you mean temperature?"),
        ('[models."qwen3-4b"]\nthinking = "sometimes"\n', 'models."qwen3-4b".thinking', "sometimes"),
        ('[models."qwen3-4b"]\nlicence = "apache"\n', 'models."qwen3-4b".licence', "unknown licence apache"),
        ('[models."qwen3-4b"]\ndefault_quant = "q1"\n', "default_quant", "no variant has the quant q1"),
        ('[models.new]\nname = "x"\n', 'models."new"', "is missing"),
        ("[model.x]\n", "model", "did you mean models?"),
        ('[models."Qwen3-4B-Instruct"]\ncontext = 5\n', "Qwen3-4B-Instruct", 'write "qwen3-4b"'),
        ("models = 5\n", "models", "models"),
        ("a = [\n", "", "not valid TOML"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, key: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        merged(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "models.toml") in message
    assert key in caught.value.key
    assert words in message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        load_catalogue(shipped_catalogue(), tmp_path / "models.toml")


def test_a_missing_shipped_file_says_reinstall(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="reinstall"):
        load_catalogue(tmp_path / "gone.toml", tmp_path / "gone too")


def test_it_is_found_in_a_checkout() -> None:
    assert shipped_catalogue() == REPOSITORY / "models.toml"


def test_it_is_found_in_a_wheel(tmp_path: Path) -> None:
    """A wheel unpacks to a package with models.toml inside; only the path logic is copied here."""
    package = tmp_path / "site" / "edgeqwen"
    package.mkdir(parents=True)
    for name in ("__init__.py", "paths.py", "errors.py"):
        (package / name).write_bytes((REPOSITORY / "edgeqwen" / name).read_bytes())
    (package / "models.toml").write_bytes(shipped_catalogue().read_bytes())
    code = "import json; from edgeqwen.paths import shipped_catalogue as s; print(json.dumps(str(s())))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert Path(json.loads(found.stdout)) == package / "models.toml"


def test_the_wheel_packs_it() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    assert '"models.toml" = "edgeqwen/models.toml"' in pyproject
