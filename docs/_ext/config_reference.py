"""Writes the reference of the configuration from ``conf/``, where the page asks for it.

The first paragraph of comments in a file introduces the file; the comment lines above a key say
what it means. A key without any means what the same key means in the first file of its folder that
says so: the default choice comes first, the others follow by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CONF = Path(__file__).parents[2] / "conf"
PLACE = "<!-- the keys of conf/ stand here -->"
#: chosen by Hydra's own option, so not in the defaults of config.yaml
_SWEEPER = ("hydra/sweeper", "hydra.sweeper")
_HEAD = re.compile(r"(?:# @package (?P<package>\S+)\n)?(?P<comment>(?:#.*\n)*)\n")


@dataclass(frozen=True)
class Key:
    """A key of a file, or a section that has a meaning as a whole."""

    name: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class File:
    """What a file of ``conf/`` says.

    Attributes:
        name: The choice that it is.
        head: What introduces it.
        keys: Its keys; none where it changes those of other groups.
        body: All that follows the head.
        bases: Other files of its group that it begins with.
    """

    name: str
    head: str
    keys: tuple[Key, ...]
    body: str
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Files of which one is chosen, by ``option=<name>``."""

    title: str
    files: tuple[File, ...]
    changes_others: bool


def read_groups(conf: Path = CONF) -> list[Group]:
    """All groups in the order of the defaults of ``config.yaml``, and before them that file.

    Raises:
        ValueError: If a key or file has no comment that says what it means.
    """
    config = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))
    entries = [next(iter(entry.items())) for entry in config["defaults"] if entry != "_self_"]
    groups = [Group("config.yaml", (_read(conf / "config.yaml", "", {}),), False)]
    known: dict[str, dict[str, str]] = {}  # meanings by folder
    for option, chosen in [*entries, (_SWEEPER[0], None)]:
        folder, _, package = option.partition("@")
        paths = sorted((conf / folder).glob("*.yaml"), key=lambda p: (p.stem != chosen, p.stem))
        if package:  # one file for each place, there is nothing to choose
            paths = [conf / folder / f"{chosen}.yaml"]
        prefix = _SWEEPER[1] if option == _SWEEPER[0] else package or folder
        meanings = known.setdefault(folder, {})
        files = tuple(_read(path, f"{prefix}.", meanings) for path in paths)
        groups.append(Group(prefix if package else option, files, not files[0].keys))
    return groups


def _read(path: Path, prefix: str, known: dict[str, str]) -> File:
    text = path.read_text(encoding="utf-8")
    head = _HEAD.match(text)
    if head is None or not head["comment"]:
        raise ValueError(
            f"{path} does not say what it is for: begin it with a comment and an empty line"
        )
    lines = text.split("\n")
    root = yaml.compose(text)
    bases = [v.value for k, v in root.value if k.value == "defaults" for v in v.value]
    keys: list[Key] = []
    for name, node, value in () if head["package"] else _walk(root, ""):
        own = _comment_above(lines, node.start_mark.line)
        meaning = own or known.get(name, "")
        leaf = not _is_section(value)
        if leaf and not meaning:
            raise ValueError(f"{path}: a comment above {name} must say what it means")
        if meaning:
            known.setdefault(name, meaning)
            keys.append(Key(prefix + name, _written(text, value) if leaf else None, meaning))
    return File(
        name=path.stem,
        head=_prose(head["comment"].split("\n")),
        keys=tuple(keys),
        body=text[head.end() :].strip(),
        bases=tuple(b for b in bases if isinstance(b, str) and b != "_self_") if prefix else (),
    )


def _walk(node: yaml.Node, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Dotted name, key and value of everything below a mapping."""
    for key, value in node.value:
        if not prefix and key.value == "defaults":
            continue
        yield prefix + key.value, key, value
        if _is_section(value):
            yield from _walk(value, f"{prefix}{key.value}.")


def _is_section(value: yaml.Node) -> bool:
    return isinstance(value, yaml.MappingNode) and bool(value.value)


def _written(text: str, value: yaml.Node) -> str:
    """A default as it stands in the file, on one line."""
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"[{', '.join(_written(text, entry) for entry in value.value)}]"
    return text[value.start_mark.index : value.end_mark.index].strip()


def _comment_above(lines: list[str], index: int) -> str:
    first = index
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return _prose(lines[first:index])


def _prose(lines: list[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in lines).strip()


def render(groups: list[Group]) -> str:
    """The reference as Markdown."""
    parts = [_choices(groups)]
    for group in groups:
        parts.append(f"## `{group.title}`")
        for block in _blocks(group):
            if len(group.files) > 1:
                parts.append(f"### {', '.join(f'`{group.title}={file.name}`' for file in block)}")
            parts += [_block(group, block)]
    return "\n\n".join(parts) + "\n"


def _choices(groups: list[Group]) -> str:
    """The groups that have choices; the first is the default, unless none is."""
    rows = ["| option | choices |", "|---|---|"]
    for group in groups:
        if len(group.files) > 1:
            names = ", ".join(f"`{file.name}`" for file in group.files)
            rows.append(f"| `{group.title}=` | {names} |")
    return "\n".join(rows)


def _blocks(group: Group) -> list[list[File]]:
    """Neighbours whose keys mean the same stand together."""
    blocks: dict[object, list[File]] = {}
    for file in group.files:
        same = tuple((key.name, key.meaning) for key in file.keys)
        blocks.setdefault((same, file.bases) if same else file.name, []).append(file)
    return list(blocks.values())


def _block(group: Group, files: list[File]) -> str:
    parts = []
    if len(files) == 1:
        parts.append(_escape(files[0].head))
    else:
        parts.append("\n".join(f"- `{file.name}`: {_escape(file.head)}" for file in files))
    if group.changes_others:
        return "\n\n".join([*parts, f"```yaml\n{files[0].body}\n```"])
    if files[0].bases:
        parts.append(f"As {', '.join(f'`{base}`' for base in files[0].bases)}, but:")
    alone = len(files) == 1
    rows = (
        ["| key | default | meaning |", "|---|---|---|"]
        if alone
        else ["| key | meaning |", "|---|---|"]
    )
    for key in files[0].keys:
        default = f" {_code(key.default)} |" if alone else ""
        rows.append(f"| `{key.name}` |{default} {_escape(key.meaning)} |")
    parts.append("\n".join(rows))
    if not alone:
        parts.append(_defaults(files))
    return "\n\n".join(parts)


def _defaults(files: list[File]) -> str:
    """What the defaults of each file are, where files share their meanings."""
    keys = files[0].keys
    rows = [f"| | {' | '.join(f'`{key.name}`' for key in keys)} |", f"|---{'|---' * len(keys)}|"]
    for file in files:
        values = " | ".join(_code(key.default) for key in file.keys)
        rows.append(f"| `{file.name}` | {values} |")
    return "\n".join(rows)


def _code(default: str | None) -> str:
    return "" if default is None else f"`{default}`"


def _escape(text: str) -> str:
    """Comments are plain text, but for code between backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"([\\*_|<>\[\]$])", r"\\\1", p) for p in parts
    )


def _fill(app: Sphinx, docname: str, content: list[str]) -> None:
    if PLACE in content[0]:
        for path in CONF.rglob("*.yaml"):
            app.env.note_dependency(path)
        content[0] = content[0].replace(PLACE, render(read_groups()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
