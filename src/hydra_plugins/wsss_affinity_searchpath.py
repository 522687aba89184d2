"""Puts our configuration on Hydra's search path, so that any application can list its groups."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from wsss_affinity.config import config_dir, offer_plugins


class WSSSAffinitySearchPath(SearchPathPlugin):
    """Appends it last: what the application has under the same name goes before."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, and offer the backbones of installed packages."""
        offer_plugins()
        search_path.append("wsss-affinity", f"file://{config_dir()}")
