"""Generated from ``csi.proto``, the interface of CSI 1.13, and ``pluginregistration.proto``, by which kubelets find plugins (``just stubs``)."""
