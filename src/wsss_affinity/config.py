"""Finding, composing and checking the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsss_affinity.errors import WSSSError, did_you_mean
from wsss_affinity.plugins import backbone_plugins

#: Keys of a backbone that are not arguments of a class given by its import path
BACKBONE_KEYS = ("name", "weights", "freeze_batchnorm", "freeze_stages")

# what presets say of a number they are given: ${wsss.times:${psa_lr},0.1}
OmegaConf.register_new_resolver("wsss.times", lambda a, b: a * b, replace=True)
# where jobs that are no runs keep their records: in a hidden folder, beside those of the run
OmegaConf.register_new_resolver(
    "wsss.jobs", lambda mode, dry: "" if mode == "run" and not dry else "/.jobs", replace=True
)


def _target(*, _parent_: DictConfig) -> dict[str, Any]:
    """What conf/backbone/target.yaml calls its network: the import path and the arguments."""
    names = [name for name in _parent_ if name not in BACKBONE_KEYS]
    # a missing path is told when the data set is listed
    values = {str(n): _parent_[n] for n in names if not OmegaConf.is_missing(_parent_, n)}
    return {
        n: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for n, v in values.items()
    }


OmegaConf.register_new_resolver("wsss.target", _target, replace=True)

CONFIG_NAME = "config"
VERSION_BASE = "1.3"
#: extra of pyproject.toml that a launcher comes with
_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}


def config_dir() -> Path:
    """Folder of the shipped configuration: in the package, or at the top of a checkout.

    Raises:
        WSSSError: If it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise WSSSError(f"conf/{CONFIG_NAME}.yaml is neither in {package} nor beside src; reinstall")


def load_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration, as the command line does.

    Args:
        overrides: As on the command line, e.g. ``["experiment=shapes", "walk.beta=4"]``.

    Raises:
        WSSSError: If a key or choice does not exist; near names are in the message.
    """
    check_overrides(overrides)
    return _compose(overrides)


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _hydra():
        return compose(CONFIG_NAME, overrides=list(overrides))


def offer_plugins() -> None:
    """Make the backbones of installed packages choices of ``backbone=``, without importing them."""
    shipped = {path.stem for path in (config_dir() / "backbone").glob("*.yaml")}
    for name in backbone_plugins().keys() - shipped:
        node = {"name": name, "weights": None, "freeze_batchnorm": False, "freeze_stages": 0}
        ConfigStore.instance().store(name, node, group="backbone", provider="wsss_affinity")


@contextmanager
def _hydra() -> Iterator[GlobalHydra]:
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance()
        return
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        yield GlobalHydra.instance()


def check_overrides(arguments: Iterable[str]) -> None:
    """Refuse overrides of keys that do not exist, with the nearest ones that do.

    Flags of Hydra (``-m``, ``--cfg job``) are passed over. A folder given to Hydra with
    ``--config-dir`` or ``hydra.searchpath`` may hold anything, so nothing is checked then.

    Raises:
        WSSSError: At the first override that is malformed or unknown.
    """
    arguments = list(arguments)
    offer_plugins()
    if any(a.startswith(("--config", "-cd", "-cn", "-cp", "hydra.searchpath")) for a in arguments):
        return
    texts = [a for a in arguments if "=" in a and not a.startswith("-")]
    overrides = [(text, _parse(text)) for text in texts]
    groups = [(t, o) for t, o in overrides if _options(o)]
    for text, override in groups:
        _check_choices(text, override)
    # a sweep has several choices; the keys of the first stand for all
    chosen = [f"{o.get_key_element()}={_choices(o)[0]}" for _, o in groups]
    try:
        cfg = _compose(chosen)
    except (HydraException, OmegaConfBaseException) as error:
        raise WSSSError(f"the configuration cannot be composed: {error}") from error
    keys = _keys(cfg)
    for text, override in overrides:
        key = override.key_or_group
        known = key in keys or override.is_add() or override.is_force_add()
        if not known and (text, override) not in groups and not key.startswith("hydra"):
            open_ended = any(key.startswith(f"{parent}.") for parent in _open_sections(cfg))
            if not open_ended:
                hint = did_you_mean(key, keys)
                hint = hint if hint.startswith("did") else "see `wsss-affinity --cfg job`"
                raise WSSSError(f"there is no key {key!r} in the configuration; {hint}")


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise WSSSError(
            f"cannot read the override {text!r} ({error}); expected key=value, "
            "with quotes around values that hold spaces or commas"
        ) from error


def _options(override: Override) -> list[str]:
    """What may be chosen, those of Hydra and its plugins among them; empty for keys."""
    with _hydra() as hydra:
        group = override.key_or_group.split("@")[0].lstrip("/")
        return list(hydra.config_loader().get_group_options(group))


def _choices(override: Override) -> list[str]:
    value = override.value()
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    values = value if isinstance(value, list) else [value]
    return ["null" if v is None else str(v) for v in values]


def _check_choices(text: str, override: Override) -> None:
    known = _options(override)
    for choice in _choices(override):
        if choice not in known:
            extra = _EXTRAS.get(choice) if override.key_or_group == "hydra/launcher" else None
            hint = did_you_mean(choice, known)
            if extra is not None:
                hint = f"it comes with pip install 'wsss-affinity[{extra}]'"
            raise WSSSError(f"{text}: {hint}")


def _keys(cfg: DictConfig) -> set[str]:
    found: set[str] = set()

    def visit(node: DictConfig, prefix: str) -> None:
        for name in node:
            key = f"{prefix}{name!s}"
            found.add(key)
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none():
                visit(child, f"{key}.")

    visit(cfg, "")
    return found


def _open_sections(cfg: DictConfig) -> list[str]:
    """Dictionaries that are empty, so that anything may be put in."""
    return [
        k
        for k in _keys(cfg)
        if OmegaConf.is_dict(node := OmegaConf.select(cfg, k, throw_on_missing=False)) and not node
    ]
