"""Generated from ``csi.proto``, the interface of CSI 1.13 (``just stubs``)."""
