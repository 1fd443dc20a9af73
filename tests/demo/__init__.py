"""``./justw demo``: three live migrations through a real control plane, shown as they happen."""
