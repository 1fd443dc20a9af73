"""``kubectl rds``: what the records, Kubernetes and KubeVirt say of volumes and migrations, in one place, for people and programs.

Each command reads (``reading``), judges in pure code (``findings``, ``migration_rows``, ``release``, ``examination``) and prints.
The package runs on the machine of whoever operates the cluster: it talks to the API server alone, never to the box.
"""
