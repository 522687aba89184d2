"""The reference of the configuration is read from the comments of the YAML files."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """# All of it.

defaults:
  - pet: dog
  - food@dinner: bone
  - _self_
  - habit: null

# how many | at most
count: 3
box:
  # in cm, <big> if *not* small
  sides: [1.0, 2.0]
  list:
    - a
    - b
"""
FILES = {
    "config": CONFIG.replace("  list:", "  # listed\n  list:"),
    "pet/dog": """# A dog.

# what it hears
name: Rex
# where
# it sleeps
home: ${name}
# in years
age: 1  # at most 20
""",
    "pet/cat": "# A cat.\n\nname: Tom\n# of lives\nage: 9\nhome: ???\n",
    "pet/bird": "# A bird.\n\nname: Tweety\n# of lives\nage: 1\nhome: cage\n",
    "pet/kitten": "# A small cat.\n\ndefaults:\n  - cat\n  - _self_\n\n# in weeks\nage: 9\n",
    "food/bone": "# Of a cow.\n\n# all of it\nsauce:\n  # in g\n  salt: 1.0e-3\n",
    "habit/lazy": "# @package _global_\n# Sleeps: `pet.age=20`\n\npet:\n  age: 20\n",
    "hydra/sweeper/mine": "# Searches.\n\n# tries\nn: 3\n",
}


@pytest.fixture
def reference(monkeypatch):
    if not (ROOT / "docs" / "_ext").is_dir():
        pytest.skip("docs/ is not here: this is no checkout")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import config_reference

    return config_reference


@pytest.fixture
def conf(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def keys(group, name):
    (file,) = (file for file in group.files if file.name == name)
    return [(key.name, key.default, key.meaning) for key in file.keys]


def test_keys_have_the_comment_above_them(reference, conf):
    config, pet, dinner, habit, sweeper = reference.read_groups(conf)
    assert keys(config, "config") == [
        ("count", "3", "how many | at most"),
        ("box.sides", "[1.0, 2.0]", "in cm, <big> if *not* small"),
        ("box.list", "[a, b]", "listed"),
    ]
    assert pet.title == "pet"
    assert [file.name for file in pet.files] == ["dog", "bird", "cat", "kitten"]  # default first
    assert [file.head for file in pet.files] == ["A dog.", "A bird.", "A cat.", "A small cat."]
    assert keys(pet, "dog")[1] == ("pet.home", "${name}", "where it sleeps")
    assert dinner.title == "dinner"
    assert keys(dinner, "bone") == [
        ("dinner.sauce", None, "all of it"),
        ("dinner.sauce.salt", "1.0e-3", "in g"),
    ]
    assert (habit.changes_others, pet.changes_others) == (True, False)
    assert habit.files[0].body == "pet:\n  age: 20"
    assert keys(sweeper, "mine") == [("hydra.sweeper.n", "3", "tries")]


def test_key_without_comment_means_what_it_means_in_the_first_file(reference, conf):
    pet = reference.read_groups(conf)[1]
    assert keys(pet, "cat") == [
        ("pet.name", "Tom", "what it hears"),
        ("pet.age", "9", "of lives"),
        ("pet.home", "???", "where it sleeps"),
    ]
    assert keys(pet, "kitten") == [("pet.age", "9", "in weeks")]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("config", "# listed\n", "\n", r"config.yaml: a comment above box.list must say"),
        ("food/bone", "  # in g\n", "", r"bone.yaml: a comment above sauce.salt must say"),
        ("pet/dog", "# where\n# it sleeps\n", "", r"bird.yaml|dog.yaml: a comment above home"),
        ("pet/cat", "# A cat.\n\n", "", r"cat.yaml does not say what it is for"),
        ("habit/lazy", "# Sleeps: `pet.age=20`\n", "", r"lazy.yaml does not say what it is for"),
    ],
)
def test_what_has_no_meaning_is_refused(reference, conf, file, old, new, message):
    path = conf / f"{file}.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        reference.read_groups(conf)


def test_page(reference, conf):
    page = reference.render(reference.read_groups(conf)).split("\n")
    assert "| `pet=` | `dog`, `bird`, `cat`, `kitten` |" in page
    assert r"| `count` | `3` | how many \| at most |" in page
    assert r"| `box.sides` | `[1.0, 2.0]` | in cm, \<big\> if \*not\* small |" in page
    # cat and bird mean the same by their keys
    start = page.index("### `pet=bird`, `pet=cat`")
    assert "| `pet.age` | of lives |" in page[start:]
    assert "| | `pet.name` | `pet.age` | `pet.home` |" in page[start:]
    assert "| `cat` | `Tom` | `9` | `???` |" in page[start:]
    assert page[page.index("### `pet=kitten`") + 4] == "As `cat`, but:"
    assert "Sleeps: `pet.age=20`" in page
    assert page[page.index("```yaml") + 1 : page.index("```")] == ["pet:", "  age: 20"]
