"""The site builds without a warning, and holds every page, every key and every public name."""

import html
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsss_affinity.config import CONFIG_NAME, VERSION_BASE, config_dir

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: beside the public names: what their signatures speak of, and the test class of plug-ins
MORE_NAMES = {
    "wsss_affinity.checkpoint.LoadReport",
    "wsss_affinity.data.dataset.FinishTarget",
    "wsss_affinity.data.dataset.ReadTarget",
    "wsss_affinity.data.dataset.Transform",
    "wsss_affinity.data.labels.read_label_file",
    "wsss_affinity.data.source.Problem",
    "wsss_affinity.interrupt.Interrupted",
    "wsss_affinity.testing.BackboneContract",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages, in HTML."""
    for package in ("sphinx", "furo", "myst_parser"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the extra `docs`")
    if not (DOCS / "conf.py").is_file():
        pytest.skip("docs/ is not here: this is no checkout")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    places = ["-d", str(folder / "trees"), str(DOCS), str(folder / "html")]
    # no file of docs/ changes, not even by being imported
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, *places], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder / "html"


def links(page):
    """Local targets of a page, as ``(path, anchor)``."""
    for link in re.findall(r'href="([^"]+)"', page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|//", link):
            path, _, anchor = html.unescape(link).partition("#")
            # what stands behind ? keeps browsers from showing an old file
            path = unquote(path.partition("?")[0])
            yield (page.parent / path).resolve() if path else page.resolve(), anchor


def test_every_page_is_reached_and_every_link_leads_somewhere(site):
    site = site.resolve()
    seen, left, anchors = set(), [site / "index.html"], {}
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        text = page.read_text(encoding="utf-8")
        anchors[page] = {html.unescape(name) for name in re.findall(r'\bid="([^"]+)"', text)}
        for target, _ in links(page):
            assert target.exists(), f"{page.name} links to {target}"
            if target.suffix == ".html":
                left.append(target)
    sources = {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")}
    assert len(sources) > 20
    assert sources <= {page.relative_to(site) for page in seen}
    for page in seen:
        for target, anchor in links(page):
            if anchor and target in anchors:
                assert anchor in anchors[target], f"{page.name}: {target.name}#{anchor}"


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()


def tables(page):
    """Rows of each table by the heading above it: cells as text, the first row the head."""
    found, heading = {}, None
    parts = re.findall(r"<(h[1-3])>(.*?)</\1>|<table(.*?)</table>", page, re.DOTALL)
    for tag, title, table in parts:
        if tag:
            heading = text_of(re.sub(r'<a class="headerlink".*?</a>', "", title))
        else:
            rows = re.findall(r"<tr[ >].*?</tr>", table, re.DOTALL)
            cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
            found.setdefault(heading, []).append([[text_of(c) for c in row] for row in cells])
    return found


def documented(site):
    """Defaults by heading and key, as they are written, and whether each has a meaning."""
    found = {}
    for heading, several in tables((site / "configuration.html").read_text()).items():
        head, *rows = several[0]
        if head[0] != "key":
            continue
        assert all(row[0] and row[-1] for row in rows), heading
        if head == ["key", "meaning"]:  # choices whose keys mean the same share a section
            (_, *names), *choices = several[1]
            option = heading.partition("=")[0]
            for choice, *values in choices:
                assert f"{option}={choice}" in heading.split(", ")
                found[f"{option}={choice}"] = dict(zip(names, values, strict=True))
        else:
            found[heading] = {key: default for key, default, _ in rows}
    return found


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def composed(*overrides):
    """Every leaf of the configuration, Hydra's own among them, interpolations as they stand."""
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        cfg = compose(CONFIG_NAME, ["~experiment", *overrides], return_hydra_config=True)
    return dict(leaves(OmegaConf.to_container(cfg)))


def options():
    """Headings of the page and what chooses their files."""
    yield "config.yaml", []
    for name in ("train_cam", "cam", "affinity_labels", "train_affinity", "walk"):
        yield name, []
    for name in ("train_segmentation", "evaluate", "predict", "trainer", "pipeline"):
        yield name, []
    for group in ("data", "backbone"):
        for path in (config_dir() / group).glob("*.yaml"):
            yield f"{group}={path.stem}", [f"{group}={path.stem}"]
    yield "hydra/sweeper", ["hydra/sweeper=wsss_optuna"]


def test_every_key_has_a_meaning_and_its_default(site):
    shown = documented(site)
    assert set(shown) == {heading for heading, _ in options()}
    for heading, overrides in options():
        cfg = composed(*overrides)
        group = heading.partition("=")[0].replace("/", ".")
        for key, default in shown[heading].items():
            if default == "":  # a section that has a meaning as a whole
                assert any(name.startswith(f"{key}.") for name in cfg), key
            else:
                assert yaml.safe_load(default) == cfg[key], f"{heading}: {key}"
        if heading == "config.yaml":
            sections = {name.partition("=")[0] for name in shown} | {"hydra"}
            wanted = {key for key in cfg if key.partition(".")[0] not in sections}
            wanted |= {"hydra.run.dir", "hydra.sweep.dir", "hydra.job.chdir"}
        else:
            wanted = {key for key in cfg if key.startswith(f"{group}.")}
        if heading == "data=voc12_animals":  # says what differs from voc
            wanted -= set(shown["data=voc"]) - set(shown[heading])
        assert len(wanted) > 2
        assert wanted <= set(shown[heading]), heading


def test_presets_experiments_and_sweeps_are_told(site):
    page = text_of((site / "configuration.html").read_text())
    for group in ("preset", "experiment", "sweep"):
        paths = list((config_dir() / group).glob("*.yaml"))
        assert paths
        for path in paths:
            assert f"\n{group}={path.stem}" in page
            last = path.read_text().rstrip().split("\n")[-1].strip()
            assert last in page, path


def test_every_public_name_is_documented(site):
    listed = (ROOT / "tests" / "public_api.txt").read_text().splitlines()
    public = {line.partition("(")[0] for line in listed}
    assert len(public) > 40
    pages = {path: path.read_text() for path in (site / "api").glob("*.html")}
    kinds = "function|class|data|exception"
    place = rf'<dl class="py (?:{kinds})">\s*<dt class="sig sig-object py" id="([^"]+)"'
    found = {name for page in pages.values() for name in re.findall(place, page)}
    # those at the top are links to where they are documented
    top = {name for name in public if name.count(".") == 1}
    rows = re.findall(r"<tr.*?</tr>", pages[site / "api" / "index.html"], re.DOTALL)
    linked = {
        text_of(row).split()[0]: re.findall(r'href="[^"#]+#([^"]+)"', row) for row in rows[1:]
    }
    assert set(linked) == top
    for name, (target,) in linked.items():
        assert target in found
        assert target.rpartition(".")[2] == name.rpartition(".")[2]
    assert found - top == (public - top) | MORE_NAMES
