"""The CSI driver: identity, controller and node services, and how it talks to the box."""

import os

# gRPC's fork handlers crash children of a process that serves (SIGSEGV or SIGABRT, one child in ten), and uvloop forks for every
# command of the node. gRPC reads this when it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
