"""What every process of the project needs besides its work: logs, an HTTP endpoint for metrics and health, options."""
