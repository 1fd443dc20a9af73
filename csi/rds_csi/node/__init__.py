"""The node plugin: the CSI Node service, and what it will stage and publish volumes with on a node's kernel."""
