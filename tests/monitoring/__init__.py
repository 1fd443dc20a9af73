"""What ``manifests/monitoring/`` is made of, and makes it: ``./justw monitoring``."""
