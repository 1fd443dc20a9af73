"""The CSI driver: identity, controller and node services, and how it talks to the box."""
