"""``python -m rds_csi``."""

from rds_csi.cli import main

main()
