"""``python -m wsss_affinity``."""

from wsss_affinity.cli import main

main()
